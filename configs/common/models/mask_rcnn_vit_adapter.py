"""Mask R-CNN on ViT-Adapter-T; other sizes and baselines replace `model.backbone.bottom_up`."""

from vitadapter.model_zoo import get_config

from .vit_adapter import vit_adapter_tiny

# Detectron2's own Mask R-CNN: heads, losses and sampling agree with the official release, which
# also gives each object the proposals nearest to it.
model = get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up = vit_adapter_tiny
model.backbone.in_features = ["res2", "res3", "res4", "res5"]
model.roi_heads.num_classes = "${dataset.num_classes}"
# ImageNet mean and deviation of RGB in 0..255
model.pixel_mean = [123.675, 116.28, 103.53]
model.pixel_std = [58.395, 57.12, 57.375]
model.input_format = "RGB"
