"""Paper table 11: prompts, biases and SETR's head are trained, as in the row that it quotes."""

from detectron2.config import LazyCall as L

from vitadapter.modeling.backbone import TrainedParts, VisualPrompts

from .setr_pup_vit_l_augreg_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.net.tuning = [
    L(VisualPrompts)(num_prompts=100),
    L(TrainedParts)(substrings=["bias"]),
]
# VPT does not give its rate for segmentation. Prompts are as new as the head.
optimizer.params.lr_factor_func.factors["prompts"] = 10.0
