"""Tables of prefixes for the official segmenters; see `official_detectors`.

Norms come before the convolutions that hold them: our names of the one begin with the other's.
"""

__all__ = ["AUXILIARY_FCN_HEAD", "SEMANTIC_FPN_HEAD", "UPER_HEAD"]

_HEAD = "sem_seg_head.head"

UPER_HEAD = (
    ("decode_head.psp_modules.{i}.1.bn.", f"{_HEAD}.ppm.projections.{{i}}.norm."),
    ("decode_head.psp_modules.{i}.1.conv.", f"{_HEAD}.ppm.projections.{{i}}."),
    ("decode_head.bottleneck.bn.", f"{_HEAD}.ppm.bottleneck.norm."),
    ("decode_head.bottleneck.conv.", f"{_HEAD}.ppm.bottleneck."),
    ("decode_head.lateral_convs.{i}.bn.", f"{_HEAD}.lateral_convs.{{i}}.norm."),
    ("decode_head.lateral_convs.{i}.conv.", f"{_HEAD}.lateral_convs.{{i}}."),
    ("decode_head.fpn_convs.{i}.bn.", f"{_HEAD}.fpn_convs.{{i}}.norm."),
    ("decode_head.fpn_convs.{i}.conv.", f"{_HEAD}.fpn_convs.{{i}}."),
    ("decode_head.fpn_bottleneck.bn.", f"{_HEAD}.fpn_bottleneck.norm."),
    ("decode_head.fpn_bottleneck.conv.", f"{_HEAD}.fpn_bottleneck."),
    ("decode_head.conv_seg.", f"{_HEAD}.predictor."),
)
AUXILIARY_FCN_HEAD = (
    ("auxiliary_head.convs.{i}.bn.", "sem_seg_head.auxiliary_head.convs.{i}.norm."),
    ("auxiliary_head.convs.{i}.conv.", "sem_seg_head.auxiliary_head.convs.{i}."),
    ("auxiliary_head.conv_seg.", "sem_seg_head.auxiliary_head.predictor."),
)
SEMANTIC_FPN_HEAD = (
    ("decode_head.scale_heads.{i}.{j}.bn.", "sem_seg_head.p{i+2}.{j}.norm."),
    ("decode_head.scale_heads.{i}.{j}.conv.", "sem_seg_head.p{i+2}.{j}."),
    ("decode_head.conv_seg.", "sem_seg_head.predictor."),
)
