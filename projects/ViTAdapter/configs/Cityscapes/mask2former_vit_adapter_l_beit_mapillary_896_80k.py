"""Mapillary Vistas in Cityscapes' classes, tested on Cityscapes: the first of two stages."""

from vitadapter.model_zoo import get_config

from ..ADE20K.mask2former_vit_adapter_l_beit_640_160k import (
    lr_multiplier,
    model,
    optimizer,
    train,
)

_data = get_config("common/data/cityscapes.py")
dataset, dataloader = _data.dataset_mapillary, _data.dataloader
train.max_iter = 80000
train.inference.tta.wrapper.resizes.ratios.append(2.0)
