"""Faster R-CNN on ViT-Adapter-T: the box-only sibling, for data without masks."""

from .mask_rcnn_vit_adapter import model

model.roi_heads.mask_in_features = None
model.roi_heads.mask_pooler = None
model.roi_heads.mask_head = None
