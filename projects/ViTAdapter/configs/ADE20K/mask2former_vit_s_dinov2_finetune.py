"""The plain-ViT baseline of `mask2former_vit_adapter_s_dinov2_finetune`."""

from .mask2former_vit_adapter_s_dinov2_finetune import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)
from .upernet_vit_s_dinov2_finetune import model as _upernet

model.backbone = _upernet.backbone
