"""Paper table 11: the ViT's blocks keep their weights; embeddings, adapter and head are trained.

This meets the paper's 30 M trained parameters (29.7 M). With `freeze_net=True` and no tuning, which
freezes the embeddings too, it would be 28.3 M.
"""

from detectron2.config import LazyCall as L

from vitadapter.modeling.backbone import TrainedParts

from .semantic_fpn_vit_adapter_l_augreg_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.net.tuning = [L(TrainedParts)(substrings=["patch_embed", "pos_embed"])]
