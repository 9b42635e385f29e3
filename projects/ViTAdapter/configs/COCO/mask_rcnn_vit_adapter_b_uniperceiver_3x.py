from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_s_dinov2_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config(
    "common/models/uni_perceiver.py"
).vit_adapter_uni_perceiver_base
optimizer.params.lr_factor_func.rate = 0.65
# On no hub that timm reads: give the file.
train.init_checkpoint = ""
