"""Necks and heads of the official ViT-Adapter release: tables of names, one layout per model.

To add one, write its `OfficialLayout` with its own rows and those that it shares with others, and
append it to `LAYOUTS`. The first layout that recognises a file is used.
`tests/checkpoint/official/test_layouts.py` then needs the key lists in `reference/keys` that
belong to it, and checks that nothing is lost in either direction.
"""

from vitadapter.checkpoint.family import Family
from vitadapter.checkpoint.official.conversion import BACKBONE, OfficialLayout

__all__ = ["LAYOUTS", "OFFICIAL_FAMILIES"]


def _conv(official: str, ours: str, norm: str = "bn") -> tuple[tuple[str, str], ...]:
    """Rows of convolutions, which may have a norm (and then no bias).

    The norm comes first, because our name of it begins with that of the convolution.
    """
    return ((f"{official}{norm}.", f"{ours}norm."), (f"{official}conv.", ours))


FPN = (
    *_conv("neck.lateral_convs.{i}.", "backbone.fpn_lateral{i+2}."),
    *_conv("neck.fpn_convs.{i}.", "backbone.fpn_output{i+2}."),
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
        *_conv("roi_head.bbox_head.shared_convs.{i}.", "roi_heads.box_head.conv{i+1}."),
        ("roi_head.bbox_head.shared_fcs.{i}.", "roi_heads.box_head.fc{i+1}."),
        ("roi_head.bbox_head.fc_cls.", "roi_heads.box_predictor.cls_score."),
        ("roi_head.bbox_head.fc_reg.", "roi_heads.box_predictor.bbox_pred."),
        *_conv("roi_head.mask_head.convs.{i}.", "roi_heads.mask_head.mask_fcn{i+1}."),
        ("roi_head.mask_head.upsample.", "roi_heads.mask_head.deconv."),
        ("roi_head.mask_head.conv_logits.", "roi_heads.mask_head.predictor."),
    ),
)

CASCADE_HEADS = (
    *_conv("roi_head.bbox_head.{s}.shared_convs.{i}.", "roi_heads.box_head.{s}.conv{i+1}."),
    ("roi_head.bbox_head.{s}.shared_fcs.{i}.", "roi_heads.box_head.{s}.fc{i+1}."),
    ("roi_head.bbox_head.{s}.fc_cls.", "roi_heads.box_predictor.{s}.cls_score."),
    ("roi_head.bbox_head.{s}.fc_reg.", "roi_heads.box_predictor.{s}.bbox_pred."),
    ("roi_head.mask_head.{s}.convs.{i}.conv.", "roi_heads.mask_head.{s}.mask_fcn{i+1}."),
    ("roi_head.mask_head.{s}.upsample.", "roi_heads.mask_head.{s}.deconv."),
    ("roi_head.mask_head.{s}.conv_logits.", "roi_heads.mask_head.{s}.predictor."),
)
"""Rows of the three box and mask heads of a cascade."""

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

HTC_HEADS = (
    *CASCADE_HEADS,
    ("roi_head.mask_head.{s}.conv_res.conv.", "roi_heads.mask_head.{s}.conv_res."),
    (
        "roi_head.semantic_head.lateral_convs.{i}.conv.",
        "roi_heads.semantic_head.lateral_convs.{i}.",
    ),
    ("roi_head.semantic_head.convs.{i}.conv.", "roi_heads.semantic_head.convs.{i}."),
    ("roi_head.semantic_head.conv_embedding.conv.", "roi_heads.semantic_head.conv_embedding."),
    ("roi_head.semantic_head.conv_logits.", "roi_heads.semantic_head.conv_logits."),
)
"""`CASCADE_HEADS` with the semantic branch and the flow between mask heads."""

EXTRA_ATTENTION_FPN = (
    ("neck.0.norm{i}.", "backbone.bottom_up.norm{i}."),
    ("neck.0.attn.", "backbone.bottom_up.attn."),
    ("neck.0.ffn.", "backbone.bottom_up.ffn."),
    ("neck.0.final_norm.", "backbone.bottom_up.final_norm."),
    *_conv("neck.1.lateral_convs.{i}.", "backbone.fpn_lateral{i+2}.", "gn"),
    *_conv("neck.1.fpn_convs.{i}.", "backbone.fpn_output{i+2}.", "gn"),
)
"""The neck of HTC++: `FPN` over `ExtraAttention`, over the backbone."""

HTC = OfficialLayout(
    name="official_htc",
    description="official ViT-Adapter HTC++ (mmdet names)",
    markers=("neck.1.lateral_convs.0.conv.weight", "roi_head.semantic_head.conv_logits.weight"),
    rows=(*EXTRA_ATTENTION_FPN, *RPN, *HTC_HEADS),
    # Below the FPN and the extra attention.
    backbone_path="backbone.bottom_up.bottom_up",
)

# An FPN that starts at stride 8. Its last two levels are convolutions like the others.
_FPN_P3_P7 = (
    ("neck.lateral_convs.{i}.conv.", "backbone.fpn_lateral{i+3}."),
    ("neck.fpn_convs.3.conv.", "backbone.top_block.p6."),
    ("neck.fpn_convs.4.conv.", "backbone.top_block.p7."),
    ("neck.fpn_convs.{i}.conv.", "backbone.fpn_output{i+3}."),
)
_TOWERS = (
    *_conv("bbox_head.cls_convs.{i}.", "head.cls_subnet.{i}.", "gn"),
    *_conv("bbox_head.reg_convs.{i}.", "head.bbox_subnet.{i}.", "gn"),
    ("bbox_head.scales.{i}.scale", "head.scales.{i}"),
)

ATSS_ROWS = (
    *_FPN_P3_P7,
    *_TOWERS,
    ("bbox_head.atss_cls.", "head.cls_score."),
    ("bbox_head.atss_reg.", "head.bbox_pred."),
    ("bbox_head.atss_centerness.", "head.centerness."),
)

GFL_ROWS = (
    *_FPN_P3_P7,
    *_TOWERS,
    ("bbox_head.gfl_cls.", "head.cls_score."),
    ("bbox_head.gfl_reg.", "head.bbox_pred."),
    ("bbox_head.integral.project", "head.bins"),
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

SPARSE_RCNN = OfficialLayout(
    name="official_sparse_rcnn",
    description="official ViT-Adapter Sparse R-CNN (mmdet names)",
    markers=("rpn_head.init_proposal_features.weight",),
    rows=(
        *FPN,
        ("rpn_head.init_proposal_bboxes.", "init_proposal_boxes."),
        ("rpn_head.init_proposal_features.", "init_proposal_features."),
        ("roi_head.bbox_head.{i}.attention.attn.", "stages.{i}.attention."),
        ("roi_head.bbox_head.{i}.ffn.layers.0.0.", "stages.{i}.ffn.0."),
        ("roi_head.bbox_head.{i}.ffn.layers.1.", "stages.{i}.ffn.2."),
        ("roi_head.bbox_head.{i}.", "stages.{i}."),
    ),
)

UPER_HEAD = (
    *_conv("decode_head.psp_modules.{i}.1.", "sem_seg_head.head.ppm.projections.{i}."),
    *_conv("decode_head.bottleneck.", "sem_seg_head.head.ppm.bottleneck."),
    *_conv("decode_head.lateral_convs.{i}.", "sem_seg_head.head.lateral_convs.{i}."),
    *_conv("decode_head.fpn_convs.{i}.", "sem_seg_head.head.fpn_convs.{i}."),
    *_conv("decode_head.fpn_bottleneck.", "sem_seg_head.head.fpn_bottleneck."),
    ("decode_head.conv_seg.", "sem_seg_head.head.predictor."),
)

AUXILIARY_FCN_HEAD = (
    *_conv("auxiliary_head.convs.{i}.", "sem_seg_head.auxiliary_head.convs.{i}."),
    ("auxiliary_head.conv_seg.", "sem_seg_head.auxiliary_head.predictor."),
)

UPERNET = OfficialLayout(
    name="official_upernet",
    description="official ViT-Adapter UPerNet (mmseg names)",
    markers=("decode_head.conv_seg.weight", "decode_head.psp_modules.0.1.conv.weight"),
    rows=(*UPER_HEAD, *AUXILIARY_FCN_HEAD),
    backbone_path="backbone",
)

SEMANTIC_FPN_HEAD = (
    *_conv("decode_head.scale_heads.{i}.{j}.", "sem_seg_head.p{i+2}.{j}."),
    ("decode_head.conv_seg.", "sem_seg_head.predictor."),
)

SEMANTIC_FPN = OfficialLayout(
    name="official_semantic_fpn",
    description="ViT-Adapter Semantic FPN in mmseg names",
    markers=("decode_head.conv_seg.weight", "decode_head.scale_heads.0.0.conv.weight"),
    rows=(*FPN, *SEMANTIC_FPN_HEAD),
)


def mask2former_head(official: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Rows of a Mask2Former head.

    Args:
        official: prefix of the head in the official names, such as "decode_head.".
        ours: prefix of our head.
    """
    rows = (
        *_conv("pixel_decoder.input_convs.{i}.", "pixel_decoder.input_proj.{i}.", "gn"),
        ("pixel_decoder.level_encoding.", "pixel_decoder.level_embed."),
        ("pixel_decoder.encoder.layers.{i}.attentions.0.", "pixel_decoder.encoder.{i}.self_attn."),
        ("pixel_decoder.encoder.layers.{i}.norms.{j}.", "pixel_decoder.encoder.{i}.norm{j+1}."),
        (
            "pixel_decoder.encoder.layers.{i}.ffns.0.layers.0.0.",
            "pixel_decoder.encoder.{i}.linear1.",
        ),
        ("pixel_decoder.encoder.layers.{i}.ffns.0.layers.1.", "pixel_decoder.encoder.{i}.linear2."),
        *_conv("pixel_decoder.lateral_convs.{i}.", "pixel_decoder.lateral_convs.{i}.", "gn"),
        *_conv("pixel_decoder.output_convs.{i}.", "pixel_decoder.output_convs.{i}.", "gn"),
        ("pixel_decoder.mask_feature.", "pixel_decoder.mask_features."),
        ("transformer_decoder.layers.{i}.attentions.0.attn.", "predictor.layers.{i}.cross_attn."),
        ("transformer_decoder.layers.{i}.attentions.1.attn.", "predictor.layers.{i}.self_attn."),
        ("transformer_decoder.layers.{i}.norms.{j}.", "predictor.layers.{i}.norm{j+1}."),
        ("transformer_decoder.layers.{i}.ffns.0.layers.0.0.", "predictor.layers.{i}.linear1."),
        ("transformer_decoder.layers.{i}.ffns.0.layers.1.", "predictor.layers.{i}.linear2."),
        ("transformer_decoder.post_norm.", "predictor.decoder_norm."),
        ("query_embed.", "predictor.query_embed."),
        ("query_feat.", "predictor.query_feat."),
        ("level_embed.", "predictor.level_embed."),
        ("cls_embed.", "predictor.class_embed."),
        ("mask_embed.", "predictor.mask_embed."),
    )
    return tuple((f"{official}{theirs}", f"{ours}{own}") for theirs, own in rows)


MASK2FORMER = OfficialLayout(
    name="official_mask2former",
    description="official ViT-Adapter Mask2Former (mmseg names)",
    markers=("decode_head.query_feat.weight", "decode_head.mask_embed.0.weight"),
    rows=mask2former_head("decode_head.", "sem_seg_head."),
    backbone_path="backbone",
    ignored={r"decode_head\.conv_seg\.": "a classifier that the official code no longer has"},
)

MASK2FORMER_PANOPTIC = OfficialLayout(
    name="official_mask2former_panoptic",
    description="official ViT-Adapter panoptic Mask2Former (mmdet names)",
    markers=("panoptic_head.query_feat.weight", "panoptic_head.mask_embed.0.weight"),
    rows=mask2former_head("panoptic_head.", "sem_seg_head."),
    backbone_path="backbone",
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

OFFICIAL_FAMILIES: tuple[Family, ...] = (
    *(layout.family for layout in LAYOUTS),
    BACKBONE,
)
