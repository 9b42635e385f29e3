"""Mask2Former on ViT-Adapter-T, in three tasks; other sizes replace `model.backbone`.

`model` is for semantic, `model_instance` for instance and `model_panoptic` for panoptic
segmentation. `wide_head` is the head of the official recipes with BEiT-L: four times as wide.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from vitadapter.modeling.mask2former import (
    HungarianMatcher,
    InstanceInference,
    Mask2Former,
    Mask2FormerHead,
    MaskedTransformerDecoder,
    MSDeformAttnPixelDecoder,
    PanopticInference,
    SegmentTargets,
    SemanticTargets,
    SetCriterion,
    first_classes,
)

from ..pixels import imagenet
from .vit_adapter import vit_adapter_tiny

model = L(Mask2Former)(
    backbone=vit_adapter_tiny,
    sem_seg_head=L(Mask2FormerHead)(
        pixel_decoder=L(MSDeformAttnPixelDecoder)(
            input_shape={
                f"res{i}": L(ShapeSpec)(channels="${.....backbone.net.embed_dim}", stride=2**i)
                for i in range(2, 6)
            },
            embed_dim=256,
            mask_dim="${.embed_dim}",
            num_heads=8,
            num_points=4,
            num_layers=6,
            ffn_dim=1024,
            num_levels=3,
            norm="GN",
        ),
        predictor=L(MaskedTransformerDecoder)(
            num_classes="${dataset.num_classes}",
            num_queries=100,
            embed_dim="${..pixel_decoder.embed_dim}",
            mask_dim="${..pixel_decoder.mask_dim}",
            num_heads="${..pixel_decoder.num_heads}",
            num_layers=9,
            ffn_dim=2048,
            num_levels="${..pixel_decoder.num_levels}",
        ),
    ),
    criterion=L(SetCriterion)(
        num_classes="${..sem_seg_head.predictor.num_classes}",
        matcher=L(HungarianMatcher)(
            class_weight=2.0, mask_weight=5.0, dice_weight=5.0, num_points=12544
        ),
        no_object_weight=0.1,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    ),
    targets=L(SemanticTargets)(ignore_value=255),
    **imagenet,
    semantic_on=True,
    instance_inference=None,
    panoptic_inference=None,
    inference=None,
)

wide_head = model.sem_seg_head.copy()
wide_head.pixel_decoder.update(embed_dim=1024, num_heads=32, ffn_dim=4096)
wide_head.predictor.ffn_dim = 4096

model_instance = model.copy()
model_instance.update(
    targets=L(SegmentTargets)(),
    semantic_on=False,
    instance_inference=L(InstanceInference)(thing_classes=None, max_per_image=100),
)

# Things, then stuff, as `load_panoptic_dataset` numbers them.
_things = L(first_classes)(num_things="${dataset.num_things}")
model_panoptic = model_instance.copy()
model_panoptic.instance_inference.thing_classes = _things
model_panoptic.panoptic_inference = L(PanopticInference)(
    thing_classes=_things, score_threshold=0.8, overlap_threshold=0.8
)
