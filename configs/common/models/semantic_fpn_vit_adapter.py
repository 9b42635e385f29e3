"""Semantic FPN on ViT-Adapter-T; other sizes and baselines replace `model.backbone.bottom_up`."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN

from vitadapter.modeling.semantic import SemanticFPNHead, SemanticSegmentor

from ..pixels import imagenet
from .vit_adapter_global import vit_adapter_tiny_global

model = L(SemanticSegmentor)(
    backbone=L(FPN)(
        bottom_up=vit_adapter_tiny_global,
        in_features=["res2", "res3", "res4", "res5"],
        out_channels=256,
        norm="",
    ),
    sem_seg_head=L(SemanticFPNHead)(
        input_shape={
            f"p{i}": L(ShapeSpec)(channels="${model.backbone.out_channels}", stride=2**i)
            for i in range(2, 6)
        },
        num_classes="${dataset.num_classes}",
        conv_dims=128,
        norm="SyncBN",
        dropout=0.1,
        loss_weight=1.0,
        ignore_value="${dataset.ignore_label}",
    ),
    **imagenet,
    # Whole images, as the code base of PVT predicts them; the paper does not say.
    inference=None,
)
