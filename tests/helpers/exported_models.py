"""One tiny model of each kind that can be exported, and predictors around them."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from mask2former_samples import SHAPES, Pyramid, make_head, make_model
from torch import nn

from vitadapter.layers.nms import HardNMS
from vitadapter.modeling.dense import ATSSHead, ATSSMatcher, GFLHead
from vitadapter.modeling.dense.detector import SingleAnchorDetector
from vitadapter.modeling.roi_heads import (
    CascadeROIHeads,
    FusedSemanticHead,
    HTCMaskHead,
    HTCROIHeads,
)
from vitadapter.modeling.semantic import SemanticFPNHead, SemanticSegmentor, UPerHead
from vitadapter.modeling.sparse_rcnn import DynamicHead, SparseRCNN

CLASSES = 3
LEVELS = ["res3", "res4"]  # of the detectors: tracing is slow
STRIDES = [8, 16]
PIXELS = dict(pixel_mean=[120.0, 110.0, 100.0], pixel_std=[50.0, 60.0, 70.0])


def _pooler(size: int, strides: list[int] = STRIDES) -> ROIPooler:
    return ROIPooler(size, [1 / stride for stride in strides], 0, "ROIAlignV2")


def _box_parts() -> tuple[nn.Module, nn.Module]:
    head = FastRCNNConvFCHead(ShapeSpec(channels=8, height=3, width=3), conv_dims=[], fc_dims=[16])
    predictor = FastRCNNOutputLayers(
        ShapeSpec(channels=16),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=CLASSES,
        test_score_thresh=0.5,
        test_topk_per_image=20,
    )
    return head, predictor


def _rcnn(roi_heads: nn.Module) -> nn.Module:
    levels = roi_heads.box_in_features
    anchors = DefaultAnchorGenerator(
        sizes=[[24], [40]][-len(levels) :],
        aspect_ratios=[0.5, 1.0],
        strides=STRIDES[-len(levels) :],
    )
    rpn = RPN(
        in_features=levels,
        head=StandardRPNHead(in_channels=8, num_anchors=2),
        anchor_generator=anchors,
        anchor_matcher=Matcher([0.5], [0, 1]),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=16,
        positive_fraction=0.5,
        pre_nms_topk=(60, 60),
        post_nms_topk=(30, 30),
    )
    return GeneralizedRCNN(
        backbone=Pyramid(), proposal_generator=rpn, roi_heads=roi_heads, **PIXELS
    )


def mask_rcnn() -> nn.Module:
    box_head, box_predictor = _box_parts()
    return _rcnn(
        StandardROIHeads(
            num_classes=CLASSES,
            batch_size_per_image=16,
            positive_fraction=0.5,
            proposal_matcher=Matcher([0.5], [0, 1]),
            box_in_features=LEVELS,
            box_pooler=_pooler(3),
            box_head=box_head,
            box_predictor=box_predictor,
            mask_in_features=LEVELS,
            mask_pooler=_pooler(4),
            mask_head=MaskRCNNConvUpsampleHead(
                ShapeSpec(channels=8, height=4, width=4), num_classes=CLASSES, conv_dims=[8, 8]
            ),
        )
    )


def _cascade(
    kind: type[CascadeROIHeads],
    mask_heads: list[nn.Module] | None,
    levels: list[str] = LEVELS,
    **extra: object,
) -> nn.Module:
    strides = STRIDES[-len(levels) :]
    box_heads, box_predictors = zip(*(_box_parts() for _ in range(2)), strict=True)
    return _rcnn(
        kind(
            num_classes=CLASSES,
            box_in_features=levels,
            box_pooler=_pooler(3, strides),
            box_heads=box_heads,
            box_predictors=box_predictors,
            proposal_matchers=[Matcher([0.5], [0, 1]) for _ in range(2)],
            mask_in_features=levels,
            mask_pooler=_pooler(6, strides),
            mask_heads=mask_heads,
            stage_loss_weights=[1.0, 0.5],
            **extra,
        )
    )


def cascade() -> nn.Module:
    return _cascade(CascadeROIHeads, None, average_logits=True)


def htc() -> nn.Module:
    """With regions of one level, as tracing is slow."""
    shape = ShapeSpec(channels=8, height=6, width=6)
    heads = [
        HTCMaskHead(shape, num_classes=CLASSES, conv_dims=[8, 8], takes_previous=stage > 0)
        for stage in range(2)
    ]
    semantic = FusedSemanticHead(
        8,
        in_features=LEVELS,
        pooler=ROIPooler(6, [1 / 16], 0, "ROIAlignV2"),
        fusion_level=1,
        stride=16,
        num_convs=1,
        conv_dim=8,
        num_classes=5,
    )
    return _cascade(HTCROIHeads, heads, LEVELS[1:], semantic_head=semantic, nms=HardNMS(0.5))


def mask2former() -> nn.Module:
    """With all three kinds of answers."""
    model = make_model("panoptic")
    model.semantic_on = True
    model.sem_seg_head = make_head(encoder_layers=1, decoder_layers=1)  # tracing is slow
    return model


def _dense(head: nn.Module, levels: list[str] = LEVELS) -> nn.Module:
    scale, strides = 8, STRIDES[-len(levels) :]
    return SingleAnchorDetector(
        backbone=Pyramid(),
        head=head,
        head_in_features=levels,
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[scale * stride] for stride in strides], aspect_ratios=[1.0], strides=strides
        ),
        anchor_matcher=ATSSMatcher(),
        num_classes=CLASSES,
        test_score_thresh=0.3,
        test_topk_candidates=50,
        test_nms=HardNMS(0.6),
        max_detections_per_image=20,
        **PIXELS,
    )


def _head_arguments(num_levels: int = len(LEVELS)) -> dict[str, object]:
    return dict(in_channels=8, num_levels=num_levels, num_classes=CLASSES, conv_dims=[8], norm="")


def sparse_rcnn() -> nn.Module:
    return SparseRCNN(
        backbone=Pyramid(),
        head_in_features=LEVELS,
        box_pooler=_pooler(3),
        box_heads=[
            DynamicHead(
                num_classes=CLASSES,
                feature_dim=8,
                num_heads=2,
                feedforward_dim=8,
                dynamic_dim=4,
                pooler_size=3,
            )
            for _ in range(2)
        ],
        num_proposals=12,
        feature_dim=8,
        box2box_transform=Box2BoxTransform((2.0, 2.0, 1.0, 1.0)),
        criterion=nn.Identity(),
        max_detections_per_image=10,
        **PIXELS,
    )


def _segmenter(head: nn.Module) -> nn.Module:
    return SemanticSegmentor(backbone=Pyramid(), sem_seg_head=head, **PIXELS)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mask_rcnn": mask_rcnn,
    "cascade": cascade,
    "htc": htc,
    "atss": lambda: _dense(
        ATSSHead(box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), **_head_arguments())
    ),
    "gfl": lambda: _dense(GFLHead(**_head_arguments(num_levels=1)), LEVELS[1:]),
    "sparse_rcnn": sparse_rcnn,
    "semantic_fpn": lambda: _segmenter(
        SemanticFPNHead(SHAPES, num_classes=CLASSES, conv_dims=8, norm="")
    ),
    "upernet": lambda: _segmenter(UPerHead(SHAPES, num_classes=CLASSES, channels=8, norm="")),
    "mask2former": mask2former,
}


def build(name: str) -> nn.Module:
    """A model with weights that are large enough for its answers to differ.

    Scores are neither 0 nor 1, where many would be equal and their order chance.
    """
    torch.manual_seed(0)
    model = MODELS[name]().eval().requires_grad_(False)  # which makes tracing faster
    for parameter in model.parameters():
        if parameter.dim() > 1 and name != "mask2former":
            nn.init.normal_(parameter, std=0.1)
    for key, parameter in model.named_parameters():
        of_regions = not key.startswith("head.")
        if of_regions and key.endswith(
            ("cls_score.weight", "fc_cls.weight", "objectness_logits.weight")
        ):
            nn.init.normal_(parameter, std=1.0)
        if key.endswith("class_embed.weight"):  # of Mask2Former
            nn.init.normal_(parameter, std=0.5)
        if key.endswith(("cls_score.bias", "fc_cls.bias")):
            nn.init.zeros_(parameter)
    return model


def predictor_of(model: nn.Module) -> SimpleNamespace:
    """What `export` uses of a `LazyPredictor`."""
    metadata = Metadata()
    metadata.set(thing_classes=["cat", "dog", "cow"])
    metadata.set(thing_dataset_id_to_contiguous_id={7: 0, 3: 1, 5: 2})
    return SimpleNamespace(
        model=model,
        inference=SimpleNamespace(tta=None),
        image_format="RGB",
        augmentations=T.AugmentationList([]),
        metadata=metadata,
    )
