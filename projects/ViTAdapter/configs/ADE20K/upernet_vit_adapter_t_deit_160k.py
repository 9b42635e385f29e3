from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import LayerDecay, NoDecayOneDim

_data = get_config("common/data/ade20k.py")
dataset, dataloader = _data.dataset, _data.dataloader
model = get_config("common/models/upernet_vit_adapter.py").model
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 1.2e-4
optimizer.weight_decay = 0.01
optimizer.params.no_decay = L(NoDecayOneDim)()
optimizer.params.lr_factor_func = L(LayerDecay)(rate=0.95, num_layers="${model.backbone.net.depth}")
lr_multiplier = get_config("common/schedule.py").schedule_poly
train = get_config("common/sem_seg_train.py").train
train.amp.enabled = True
train.init_checkpoint = "timm://deit_tiny_patch16_224.fb_in1k"
