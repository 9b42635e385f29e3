"""`htcpp_vit_adapter_l_beitv2_o365` tested at six scales, each also flipped."""

from vitadapter.model_zoo import get_config

from .htcpp_vit_adapter_l_beitv2_o365 import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.inference.tta = get_config("common/tta.py").official_multi_scale_flip
# The scales are made from the whole image.
dataloader.test.mapper.augmentations = []
train.output_dir = "./output/htcpp_vit_adapter_l_beitv2_o365_ms"
