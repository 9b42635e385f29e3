from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import ClippedAdamW, FactorByName

from .atss_vit_adapter_s_deit_3x import dataloader, dataset, lr_multiplier, optimizer, train

model = get_config("common/models/sparse_rcnn_vit_adapter.py").model
model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_small
optimizer._target_ = ClippedAdamW
optimizer.max_norm = 1.0
# The learned proposals move slowly and hardly decay.
optimizer.params.lr_factor_func = L(FactorByName)(factors={"init_proposal": 0.25})
optimizer.params.decay_factor_func = L(FactorByName)(factors={"init_proposal": 0.002})
train.amp.enabled = False
train.ddp.find_unused_parameters = False
