"""The plain-ViT baseline; trained as the adapter, for want of a published recipe."""

from vitadapter.model_zoo import get_config

from .upernet_vit_adapter_s_deit_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = get_config("common/models/vit_adapter_global.py").vit_baseline_small_global
