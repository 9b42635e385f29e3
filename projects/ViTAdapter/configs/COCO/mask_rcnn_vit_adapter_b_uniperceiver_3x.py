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
train.init_checkpoint = (
    "https://github.com/czczup/ViT-Adapter/releases/download/v0.3.1/"
    "uni-perceiver-base-L12-H768-224size-torch-pretrained_converted.pth"
)
