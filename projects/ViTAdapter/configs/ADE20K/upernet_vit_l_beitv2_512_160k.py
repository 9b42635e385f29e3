"""BEiTv2's own baseline (paper table 9)."""

from .upernet_vit_l_beit_512_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.init_checkpoint = "timm://beitv2_large_patch16_224.in1k_ft_in22k"
