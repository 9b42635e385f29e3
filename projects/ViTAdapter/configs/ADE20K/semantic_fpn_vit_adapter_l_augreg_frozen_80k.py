"""Paper table 11: the ViT keeps its weights; adapter, FPN and head are trained."""

from .semantic_fpn_vit_adapter_l_augreg_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.freeze_net = True
