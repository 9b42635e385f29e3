"""Mask R-CNN on ViTDet's simple feature pyramid over the same ViT-T as `vit_adapter.py`."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from vitadapter.modeling.backbone import SimpleFeaturePyramid

from .mask_rcnn_vit_adapter import model
from .vit import vit_tiny

model.backbone = L(SimpleFeaturePyramid)(
    net=vit_tiny,
    in_feature="${.net.out_feature}",
    out_channels=256,
    scale_factors=(4.0, 2.0, 1.0, 0.5),
    top_block=L(LastLevelMaxPool)(),
    norm="LN",
    square_pad=0,
)
