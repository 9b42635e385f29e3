"""The plain-ViT baseline of `upernet_vit_adapter_s_dinov2_finetune`."""

from vitadapter.model_zoo import get_config

from .upernet_vit_adapter_s_dinov2_finetune import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

_net = model.backbone.net
model.backbone = get_config("common/models/vit_adapter_global.py").vit_baseline_small_global
model.backbone.net = _net
