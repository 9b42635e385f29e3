"""ViT-Adapter with LoRA of the ViT, which the paper (appendix B) calls worth exploring."""

from detectron2.config import LazyCall as L

from vitadapter.modeling.backbone import LoRA

from .semantic_fpn_vit_adapter_l_augreg_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.net.tuning = [L(LoRA)(rank=16)]
