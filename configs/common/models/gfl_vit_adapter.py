"""GFL on ViT-Adapter-T: neck, anchors and samples of ATSS."""

from detectron2.config import LazyCall as L

from vitadapter.modeling.meta_arch import GFL, GFLHead

from ..pixels import imagenet
from .atss_vit_adapter import model

_atss = model
model = L(GFL)(
    backbone=_atss.backbone,
    head=L(GFLHead)(
        in_channels="${..backbone.out_channels}",
        num_levels=5,
        num_classes="${..num_classes}",
        num_bins=17,
        conv_dims=[256, 256, 256, 256],
        norm="GN",
    ),
    anchor_generator=_atss.anchor_generator,
    anchor_scale=8.0,
    anchor_matcher=_atss.anchor_matcher,
    num_classes="${dataset.num_classes}",
    quality_focal_beta=2.0,
    box_loss_weight=2.0,
    distribution_loss_weight=0.25,
    test_score_thresh=0.05,
    test_topk_candidates=1000,
    test_nms=_atss.test_nms,
    max_detections_per_image=100,
    **imagenet,
    input_format="RGB",
)
