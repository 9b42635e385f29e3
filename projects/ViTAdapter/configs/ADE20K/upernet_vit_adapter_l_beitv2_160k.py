"""BEiTv2 in crops of 512 pixels (paper table 9); the recipe is that of BEiT."""

from .upernet_vit_adapter_l_beit_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataset.resize.short = 512
dataset.crop.update(size=512, stride=341)
train.init_checkpoint = "timm://beitv2_large_patch16_224.in1k_ft_in22k"
