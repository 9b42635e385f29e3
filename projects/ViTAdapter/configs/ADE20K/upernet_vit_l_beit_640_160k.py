"""BEiT's own baseline in crops of 640 pixels, as paper table 9 has it."""

from .upernet_vit_l_beit_512_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataset.resize.short = 640
dataset.crop.update(size=640, stride=426)
