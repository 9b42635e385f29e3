"""Each image also mirrored, as the official "single-scale" test does; for evaluation."""

from vitadapter.model_zoo import get_config

from .mask2former_vit_adapter_l_beitv2_896_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.inference.tta = get_config("common/sem_seg_tta.py").flip_896
# The scales are made from the whole image.
dataloader.test.mapper.augmentations = []
train.output_dir = "./output/mask2former_vit_adapter_l_beitv2_896_80k_flip"
