"""Tested at several scales, each also mirrored; for evaluation."""

from vitadapter.model_zoo import get_config

from .mask2former_vit_adapter_l_beit_896_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.inference.tta = get_config("common/sem_seg_tta.py").multi_scale_flip_cityscapes
# The scales are made from the whole image.
dataloader.test.mapper.augmentations = []
train.output_dir = "./output/cityscapes/mask2former_vit_adapter_l_beit_896_80k_ms"
