"""Whole detectors and segmenters of the official ViT-Adapter release, and back.

A layout is a table of prefixes. To add one, write an ``OfficialLayout`` beside ``MASK_RCNN``:

- ``markers``: names that every file of the layout has and that, together, no other layout has;
- ``rows``: official prefix and ours, see ``NameTable``. Everything but ``backbone.``, which is
  converted by ``convert_official_backbone``, must be in it: names without a row are refused.
  ``RPN`` and ``FPN`` below are there to be reused;
- ``backbone_path``: where our model has the ``ViTAdapter``; ``"backbone"`` where the head reads it
  without a neck;
- ``ignored``: why, by regular expression of the names that our model does not need;

and append it to ``LAYOUTS``. ``tests/checkpoint/test_official_detectors.py`` then wants the key
lists of ``reference/keys`` that belong to it, and checks that nothing is lost on the way here and
back. A layout is tried before those after it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from vitadapter.checkpoint.family import LAYER_SCALE_OF_ONE, Conversion, Family
from vitadapter.checkpoint.name_table import NameTable
from vitadapter.checkpoint.official import convert_official_backbone, export_official_backbone
from vitadapter.checkpoint.official_cascade import CASCADE_HEADS, EXTRA_ATTENTION_FPN, HTC_HEADS
from vitadapter.checkpoint.official_dense import ATSS_ROWS, GFL_ROWS
from vitadapter.checkpoint.official_mask2former import MASK2FORMER_ROWS, PANOPTIC_ROWS
from vitadapter.checkpoint.official_segmenters import (
    AUXILIARY_FCN_HEAD,
    SEMANTIC_FPN_HEAD,
    UPER_HEAD,
)
from vitadapter.checkpoint.official_sparse import SPARSE_RCNN_HEADS

__all__ = [
    "LAYOUTS",
    "OFFICIAL_FAMILIES",
    "OfficialLayout",
    "convert_official",
    "export_official",
]

_BACKBONE = "backbone."
_PYRAMIDS = ("level_embed", "up1.0.weight", "fpn1.0.weight")
_PATCH_KERNELS = ("patch_embed.proj.weight", "visual_embed.patch_embed.proj.weight")
_INDEX = ".relative_position_index"


@dataclass(frozen=True)
class OfficialLayout:
    """Names of one official head and its neck; see the module's docstring."""

    name: str
    description: str
    markers: Sequence[str]
    rows: Sequence[tuple[str, str]]
    backbone_path: str = "backbone.bottom_up"
    ignored: Mapping[str, str] = field(default_factory=dict)

    @property
    def table(self) -> NameTable:
        """The rows, compiled."""
        return NameTable(self.rows)

    def recognises(self, state_dict: Mapping[str, Tensor]) -> bool:
        """Whether the state dict is a whole model of this layout."""
        return all(name in state_dict for name in self.markers)


# The norms of convolutions that have them; with them the convolutions have no bias.
FPN = (
    ("neck.lateral_convs.{i}.bn.", "backbone.fpn_lateral{i+2}.norm."),
    ("neck.fpn_convs.{i}.bn.", "backbone.fpn_output{i+2}.norm."),
    ("neck.lateral_convs.{i}.conv.", "backbone.fpn_lateral{i+2}."),
    ("neck.fpn_convs.{i}.conv.", "backbone.fpn_output{i+2}."),
)
CHANNEL_MAPPER = (("neck.convs.{i}.conv.", "backbone.convs.{i}."),)
RPN = (
    ("rpn_head.rpn_conv.{i}.conv.", "proposal_generator.rpn_head.conv.conv{i}."),
    ("rpn_head.rpn_conv.", "proposal_generator.rpn_head.conv."),
    ("rpn_head.rpn_cls.", "proposal_generator.rpn_head.objectness_logits."),
    ("rpn_head.rpn_reg.", "proposal_generator.rpn_head.anchor_deltas."),
)

MASK_RCNN = OfficialLayout(
    name="official_mask_rcnn",
    description="official ViT-Adapter Mask R-CNN (mmdet names)",
    markers=(
        "rpn_head.rpn_cls.weight",
        "roi_head.bbox_head.fc_cls.weight",
        "roi_head.mask_head.conv_logits.weight",
    ),
    rows=(
        *FPN,
        *CHANNEL_MAPPER,
        *RPN,
        ("roi_head.bbox_head.shared_convs.{i}.bn.", "roi_heads.box_head.conv{i+1}.norm."),
        ("roi_head.bbox_head.shared_convs.{i}.conv.", "roi_heads.box_head.conv{i+1}."),
        ("roi_head.bbox_head.shared_fcs.{i}.", "roi_heads.box_head.fc{i+1}."),
        ("roi_head.bbox_head.fc_cls.", "roi_heads.box_predictor.cls_score."),
        ("roi_head.bbox_head.fc_reg.", "roi_heads.box_predictor.bbox_pred."),
        ("roi_head.mask_head.convs.{i}.bn.", "roi_heads.mask_head.mask_fcn{i+1}.norm."),
        ("roi_head.mask_head.convs.{i}.conv.", "roi_heads.mask_head.mask_fcn{i+1}."),
        ("roi_head.mask_head.upsample.", "roi_heads.mask_head.deconv."),
        ("roi_head.mask_head.conv_logits.", "roi_heads.mask_head.predictor."),
    ),
)

ATSS = OfficialLayout(
    name="official_atss",
    description="official ViT-Adapter ATSS (mmdet names)",
    markers=("bbox_head.atss_cls.weight",),
    rows=ATSS_ROWS,
)
GFL = OfficialLayout(
    name="official_gfl",
    description="official ViT-Adapter GFL (mmdet names)",
    markers=("bbox_head.gfl_cls.weight",),
    rows=GFL_ROWS,
)

CASCADE_MASK_RCNN = OfficialLayout(
    name="official_cascade_mask_rcnn",
    description="official ViT-Adapter Cascade Mask R-CNN (mmdet names)",
    markers=(
        "neck.lateral_convs.0.conv.weight",
        "roi_head.bbox_head.0.fc_cls.weight",
        "roi_head.mask_head.0.conv_logits.weight",
    ),
    rows=(*FPN, *RPN, *CASCADE_HEADS),
)
HTC = OfficialLayout(
    name="official_htc",
    description="official ViT-Adapter HTC++ (mmdet names)",
    markers=("neck.1.lateral_convs.0.conv.weight", "roi_head.semantic_head.conv_logits.weight"),
    rows=(*EXTRA_ATTENTION_FPN, *RPN, *HTC_HEADS),
    # Below the FPN and the extra attention.
    backbone_path="backbone.bottom_up.bottom_up",
)
SPARSE_RCNN = OfficialLayout(
    name="official_sparse_rcnn",
    description="official ViT-Adapter Sparse R-CNN (mmdet names)",
    markers=("rpn_head.init_proposal_features.weight",),
    rows=(*FPN, *SPARSE_RCNN_HEADS),
)
MASK2FORMER = OfficialLayout(
    name="official_mask2former",
    description="official ViT-Adapter Mask2Former (mmseg names)",
    markers=("decode_head.query_feat.weight", "decode_head.mask_embed.0.weight"),
    rows=MASK2FORMER_ROWS,
    backbone_path="backbone",
    ignored={r"decode_head\.conv_seg\.": "a classifier that the official code no longer has"},
)
MASK2FORMER_PANOPTIC = OfficialLayout(
    name="official_mask2former_panoptic",
    description="official ViT-Adapter panoptic Mask2Former (mmdet names)",
    markers=("panoptic_head.query_feat.weight", "panoptic_head.mask_embed.0.weight"),
    rows=PANOPTIC_ROWS,
    backbone_path="backbone",
)

UPERNET = OfficialLayout(
    name="official_upernet",
    description="official ViT-Adapter UPerNet (mmseg names)",
    markers=("decode_head.conv_seg.weight", "decode_head.psp_modules.0.1.conv.weight"),
    rows=(*UPER_HEAD, *AUXILIARY_FCN_HEAD),
    backbone_path="backbone",
)

SEMANTIC_FPN = OfficialLayout(
    name="official_semantic_fpn",
    description="ViT-Adapter Semantic FPN in mmseg names",
    markers=("decode_head.conv_seg.weight", "decode_head.scale_heads.0.0.conv.weight"),
    rows=(*FPN, *SEMANTIC_FPN_HEAD),
)

LAYOUTS: tuple[OfficialLayout, ...] = (
    MASK_RCNN,
    CASCADE_MASK_RCNN,
    HTC,
    ATSS,
    GFL,
    SPARSE_RCNN,
    UPERNET,
    SEMANTIC_FPN,
    MASK2FORMER,
    MASK2FORMER_PANOPTIC,
)


def _ones_for_layer_scale(state_dict: Mapping[str, Tensor]) -> Mapping[str, float]:
    """Files of models trained without layer scale have none, which is to say 1."""
    if any(re.search(r"\.gamma_?[12]$", name) for name in state_dict):
        return {}
    return LAYER_SCALE_OF_ONE


def _split(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Entries of the backbone, without their prefix, and the others."""
    backbone = {
        name.removeprefix(_BACKBONE): tensor
        for name, tensor in state_dict.items()
        if name.startswith(_BACKBONE)
    }
    rest = {name: t for name, t in state_dict.items() if not name.startswith(_BACKBONE)}
    return backbone, rest


def _indexes(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """What ``convert_official_backbone`` leaves out, and why."""
    why = "follows from the size of the bias table"
    return {name: why for name in state_dict if name.endswith(_INDEX)}


def convert_official(state_dict: Mapping[str, Tensor], layout: OfficialLayout) -> Conversion:
    """A whole official model to ours.

    Args:
        state_dict: in the official names.
        layout: of its neck and head.

    Returns:
        Conversion: to the names of the whole model, with the same tensors.

    Raises:
        ValueError: a name that the layout does not know, or a backbone that is not official.
    """
    backbone, rest = _split(state_dict)
    table = layout.table
    tensors, renamed, dropped, unknown = {}, {}, _indexes(state_dict), []
    for name, tensor in convert_official_backbone(backbone).items():
        tensors[f"{layout.backbone_path}.{name}"] = tensor
    for name, tensor in rest.items():
        why = next((why for key, why in layout.ignored.items() if re.match(key, name)), None)
        new = table.to_ours(name)
        if why is not None:
            dropped[name] = why
        elif new is None:
            unknown.append(name)
        else:
            tensors[new], renamed[name] = tensor, new
    if unknown:
        raise ValueError(
            f"{layout.description} has no {', '.join(unknown[:3])}"
            f"{f' and {len(unknown) - 3} others' if len(unknown) > 3 else ''}"
        )
    return Conversion(
        tensors,
        scope="model",
        backbone_path=layout.backbone_path,
        renamed=renamed,
        dropped=dropped,
        implied=_ones_for_layer_scale(backbone),
    )


def export_official(state_dict: Mapping[str, Tensor], layout: OfficialLayout) -> dict[str, Tensor]:
    """Our whole model to the official names: the inverse of :func:`convert_official`.

    Args:
        state_dict: of our model.
        layout: of its neck and head.

    Returns:
        A new dict with the same tensors.

    Raises:
        ValueError: a name that the layout does not know.
    """
    prefix = f"{layout.backbone_path}."
    table = layout.table
    official: dict[str, Tensor] = {}
    backbone: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        new = table.to_official(name)
        if new is not None:
            official[new] = tensor
        elif name.startswith(prefix):
            backbone[name.removeprefix(prefix)] = tensor
        else:
            raise ValueError(f"{layout.description} has nothing like {name}")
    for name, tensor in export_official_backbone(backbone).items():
        official[f"{_BACKBONE}{name}"] = tensor
    return official


def _backbone_alone(state_dict: Mapping[str, Tensor]) -> Conversion:
    """The backbone of a whole model whose head has no layout here."""
    backbone, rest = _split(state_dict)
    return Conversion(
        convert_official_backbone(backbone),
        scope="backbone",
        dropped={
            **_indexes(state_dict),
            **dict.fromkeys(rest, "no converter for this neck or head"),
        },
        implied=_ones_for_layer_scale(backbone),
    )


def _bare_backbone(state_dict: Mapping[str, Tensor]) -> Conversion:
    return Conversion(
        convert_official_backbone(state_dict),
        scope="backbone",
        dropped=_indexes(state_dict),
        implied=_ones_for_layer_scale(state_dict),
    )


def _is_bare_backbone(state_dict: Mapping[str, Tensor]) -> bool:
    """A pre-trained ViT has nothing of a pyramid; the official adapters and baselines have."""
    return any(name in state_dict for name in _PYRAMIDS) and any(
        name in state_dict for name in _PATCH_KERNELS
    )


def _has_backbone(state_dict: Mapping[str, Tensor]) -> bool:
    return _is_bare_backbone(_split(state_dict)[0])


def _family(layout: OfficialLayout) -> Family:
    def convert(state_dict: Mapping[str, Tensor]) -> Conversion:
        return convert_official(state_dict, layout)

    return Family(layout.name, layout.description, layout.recognises, (convert,))


OFFICIAL_FAMILIES: tuple[Family, ...] = (
    *(_family(layout) for layout in LAYOUTS),
    Family(
        "official_model",
        "official ViT-Adapter model with another head: its backbone",
        _has_backbone,
        (_backbone_alone,),
    ),
    Family(
        "official_backbone",
        "backbone of the official ViT-Adapter release",
        _is_bare_backbone,
        (_bare_backbone,),
    ),
)
