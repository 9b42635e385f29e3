"""Second stage, after `mask2former_vit_adapter_l_beit_mapillary_896_80k`."""

from .mask2former_vit_adapter_l_beit_mapillary_896_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataset.train.name = "cityscapes_19_train"
# Not stretched, unlike on Mapillary Vistas.
del dataloader.test.mapper.augmentations[1]
train.init_checkpoint = "zoo://Cityscapes/mask2former_vit_adapter_l_beit_mapillary_896_80k"
