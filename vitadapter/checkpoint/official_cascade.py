"""Names of the official cascade and HTC heads, and ours: rows of a ``NameTable``."""

__all__ = ["CASCADE_HEADS", "EXTRA_ATTENTION_FPN", "HTC_HEADS"]

CASCADE_HEADS = (
    ("roi_head.bbox_head.{s}.shared_convs.{i}.bn.", "roi_heads.box_head.{s}.conv{i+1}.norm."),
    ("roi_head.bbox_head.{s}.shared_convs.{i}.conv.", "roi_heads.box_head.{s}.conv{i+1}."),
    ("roi_head.bbox_head.{s}.shared_fcs.{i}.", "roi_heads.box_head.{s}.fc{i+1}."),
    ("roi_head.bbox_head.{s}.fc_cls.", "roi_heads.box_predictor.{s}.cls_score."),
    ("roi_head.bbox_head.{s}.fc_reg.", "roi_heads.box_predictor.{s}.bbox_pred."),
    ("roi_head.mask_head.{s}.convs.{i}.conv.", "roi_heads.mask_head.{s}.mask_fcn{i+1}."),
    ("roi_head.mask_head.{s}.upsample.", "roi_heads.mask_head.{s}.deconv."),
    ("roi_head.mask_head.{s}.conv_logits.", "roi_heads.mask_head.{s}.predictor."),
)
"""Of three box and mask heads."""

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
"""As :data:`CASCADE_HEADS`, with the semantic branch and the flow between mask heads."""

EXTRA_ATTENTION_FPN = (
    ("neck.0.norm{i}.", "backbone.bottom_up.norm{i}."),
    ("neck.0.attn.", "backbone.bottom_up.attn."),
    ("neck.0.ffn.", "backbone.bottom_up.ffn."),
    ("neck.0.final_norm.", "backbone.bottom_up.final_norm."),
    ("neck.1.lateral_convs.{i}.gn.", "backbone.fpn_lateral{i+2}.norm."),
    ("neck.1.lateral_convs.{i}.conv.", "backbone.fpn_lateral{i+2}."),
    ("neck.1.fpn_convs.{i}.gn.", "backbone.fpn_output{i+2}.norm."),
    ("neck.1.fpn_convs.{i}.conv.", "backbone.fpn_output{i+2}."),
)
"""The neck of HTC++: ``FPN`` over ``ExtraAttention``, over a backbone with a path of its own."""
