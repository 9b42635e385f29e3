from vitadapter.model_zoo import get_config

from .htcpp_vit_adapter_l_augreg_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.bottom_up = get_config("common/models/beit.py").vit_adapter_beit_large
model.backbone.bottom_up.drop_path_rate = 0.3
for _predictor in model.roi_heads.box_predictors:
    _predictor.test_topk_per_image = 100
train.init_checkpoint = "timm://beit_large_patch16_224.in22k_ft_in22k"
train.inference.tta = get_config("common/tta.py").official_multi_scale_flip
