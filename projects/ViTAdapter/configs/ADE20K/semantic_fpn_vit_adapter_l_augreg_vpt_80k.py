"""ViT-Adapter with visual prompts, which the paper (appendix B) calls worth exploring."""

from detectron2.config import LazyCall as L

from vitadapter.modeling.backbone import VisualPrompts

from .semantic_fpn_vit_adapter_l_augreg_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.net.tuning = [L(VisualPrompts)(num_prompts=50)]
