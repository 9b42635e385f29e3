from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import LayerDecay, NoDecayOneDim

from .mask_rcnn_vit_adapter_s_deit_1x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_large
model.update(get_config("common/pixels.py").inception)
optimizer.params.no_decay = L(NoDecayOneDim)()
optimizer.params.lr_factor_func = L(LayerDecay)(
    rate=0.8, num_layers="${model.backbone.bottom_up.net.depth}"
)
train.init_checkpoint = "timm://vit_large_patch16_384.augreg_in21k_ft_in1k"
