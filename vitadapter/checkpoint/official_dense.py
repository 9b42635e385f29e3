"""Official names of ATSS and GFL, necks included."""

__all__ = ["ATSS_ROWS", "GFL_ROWS"]

# FPN from stride 8 on, whose further levels are convolutions like the others.
_FPN_P3_P7 = (
    ("neck.lateral_convs.{i}.conv.", "backbone.fpn_lateral{i+3}."),
    ("neck.fpn_convs.3.conv.", "backbone.top_block.p6."),
    ("neck.fpn_convs.4.conv.", "backbone.top_block.p7."),
    ("neck.fpn_convs.{i}.conv.", "backbone.fpn_output{i+3}."),
)
_TOWERS = (
    ("bbox_head.cls_convs.{i}.gn.", "head.cls_subnet.{i}.norm."),
    ("bbox_head.cls_convs.{i}.conv.", "head.cls_subnet.{i}."),
    ("bbox_head.reg_convs.{i}.gn.", "head.bbox_subnet.{i}.norm."),
    ("bbox_head.reg_convs.{i}.conv.", "head.bbox_subnet.{i}."),
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
