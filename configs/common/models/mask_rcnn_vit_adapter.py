"""Mask R-CNN on ViT-Adapter-T; other sizes and baselines replace `model.backbone.bottom_up`."""

from vitadapter.model_zoo import get_config

from ..pixels import imagenet
from .vit_adapter import vit_adapter_tiny

# Detectron2's own Mask R-CNN: heads, losses and sampling agree with the official release, which
# also gives each object the proposals nearest to it.
model = get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up = vit_adapter_tiny
model.backbone.in_features = ["res2", "res3", "res4", "res5"]
model.roi_heads.num_classes = "${dataset.num_classes}"
model.update(imagenet)
model.input_format = "RGB"
