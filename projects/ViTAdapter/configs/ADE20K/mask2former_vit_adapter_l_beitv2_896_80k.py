"""BEiTv2, after `COCOStuff/mask2former_vit_adapter_l_beitv2_164k_896_80k`; without flips."""

from .mask2former_vit_adapter_l_beit_896_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.init_checkpoint = "zoo://COCOStuff/mask2former_vit_adapter_l_beitv2_164k_896_80k"
train.inference.tta.wrapper.resizes.ratios = [800 / 896, 832 / 896, 864 / 896, 1.0]
