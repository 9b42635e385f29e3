"""`cascade_mask_rcnn_vitdet_l_mae_lsj_100ep` tested at six scales, each also flipped.

The figures of this test were published without its scales: these are HTC++'s.
"""

from vitadapter.model_zoo import get_config

from .cascade_mask_rcnn_vitdet_l_mae_lsj_100ep import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.inference.tta = get_config("common/tta.py").multi_scale_flip
# The scales are made from the whole image, and larger ones than 1024 pixels have to fit in.
dataloader.test.mapper.augmentations = []
model.backbone.square_pad = 0
train.output_dir = "./output/cascade_mask_rcnn_vitdet_l_mae_lsj_100ep_ms"
