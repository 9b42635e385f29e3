from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import LayerDecay, NoDecayOneDim

from .mask_rcnn_vit_adapter_s_deit_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_small
model.backbone.bottom_up.net = get_config("common/models/vit.py").vit_small_dinov2
optimizer.params.no_decay = L(NoDecayOneDim)()
optimizer.params.lr_factor_func = L(LayerDecay)(
    rate=0.7, num_layers="${model.backbone.bottom_up.net.depth}"
)
train.init_checkpoint = "timm://vit_small_patch14_dinov2.lvd142m"
