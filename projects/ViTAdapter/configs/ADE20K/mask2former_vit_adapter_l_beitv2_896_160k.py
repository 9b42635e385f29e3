"""BEiTv2 without a run on COCO-Stuff before."""

from .mask2former_vit_adapter_l_beitv2_896_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.max_iter = 160_000
train.init_checkpoint = "timm://beitv2_large_patch16_224.in1k_ft_in22k"
