"""Instance segmentation, trained as the panoptic sibling. Not an official recipe."""

from vitadapter.model_zoo import get_config

from ..COCOPanoptic.mask2former_vit_adapter_s_dinov3_frozen_lsj_50ep import (
    lr_multiplier,
    model,
    optimizer,
    train,
)

_data = get_config("common/data/coco.py")
dataset, dataloader = _data.dataset, _data.dataloader
dataloader.train.mapper.augmentations = _data.large_scale_jitter_augmentations
dataloader.train.mapper.update(image_format="RGB", recompute_boxes=True)
dataloader.test.mapper.image_format = "RGB"
model.instance_inference.thing_classes = None
model.panoptic_inference = None
