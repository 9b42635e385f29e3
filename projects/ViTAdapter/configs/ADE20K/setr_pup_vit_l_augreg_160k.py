"""Paper table 11: the whole ViT-L is trained, with SETR's head, by SETR's recipe for ADE20K."""

import torch
from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import FactorByName

_data = get_config("common/data/ade20k.py")
dataset, dataloader = _data.dataset, _data.dataloader
model = get_config("common/models/setr_vit.py").model
optimizer = get_config("common/optim.py").AdamW
optimizer.update(_target_=torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=0.0)
optimizer.params.lr_factor_func = L(FactorByName)(factors={"sem_seg_head.": 10.0})
lr_multiplier = get_config("common/schedule.py").schedule_poly
lr_multiplier.scheduler.power = 0.9
lr_multiplier.warmup_iters = 0
train = get_config("common/sem_seg_train.py").train
train.init_checkpoint = "timm://vit_large_patch16_384.augreg_in21k_ft_in1k"
