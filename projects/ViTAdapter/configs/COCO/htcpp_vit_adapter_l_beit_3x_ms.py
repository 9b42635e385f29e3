"""`htcpp_vit_adapter_l_beit_3x` tested at six scales, each also flipped."""

from vitadapter.model_zoo import get_config

from .htcpp_vit_adapter_l_beit_3x import (
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
train.output_dir = "./output/htcpp_vit_adapter_l_beit_3x_ms"
