"""The plain-ViT baseline; trained as the adapter, for want of a published recipe."""

from vitadapter.model_zoo import get_config

from .semantic_fpn_vit_adapter_t_deit_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config(
    "common/models/vit_adapter_global.py"
).vit_baseline_tiny_global
