"""`htcpp_vit_adapter_l_augreg_3x` tested at six scales, each also flipped."""

from vitadapter.model_zoo import get_config

from .htcpp_vit_adapter_l_augreg_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.inference.tta = get_config("common/tta.py").official_multi_scale_flip
train.inference.tta.tta_mapper.max_size = 1600
# The scales are made from the whole image.
dataloader.test.mapper.augmentations = []
for _predictor in model.roi_heads.box_predictors:
    _predictor.test_topk_per_image = 100
train.output_dir = "./output/htcpp_vit_adapter_l_augreg_3x_ms"
