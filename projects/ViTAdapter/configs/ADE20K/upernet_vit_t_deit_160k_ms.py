"""Tested at several scales, each also mirrored; for evaluation."""

from vitadapter.model_zoo import get_config

from .upernet_vit_t_deit_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.inference.tta = get_config("common/sem_seg_tta.py").multi_scale_flip
# The scales are made from the whole image.
dataloader.test.mapper.augmentations = []
train.output_dir = "./output/upernet_vit_t_deit_160k_ms"
