from types import ModuleType

import torch
from detectron2.modeling.backbone import FPN
from golden_heads import GoldenHead

from vitadapter.checkpoint.official.layouts import ATSS_ROWS
from vitadapter.modeling.backbone import LastLevelConvs


def test_the_official_neck_of_atss(golden: ModuleType) -> None:
    head = GoldenHead(golden, "mmdet2_fpn_atss")
    fpn = FPN(
        bottom_up=head.features("res2"),  # the stride-4 map is not used
        in_features=["res3", "res4", "res5"],
        out_channels=256,
        top_block=LastLevelConvs(256, 256),
    )
    head.load(fpn, ATSS_ROWS, ("neck.", "backbone."))
    with torch.no_grad():
        outputs = fpn(torch.empty(0))
    assert list(outputs) == ["p3", "p4", "p5", "p6", "p7"]
    for i, level in enumerate(outputs.values()):
        assert head.difference(f"p{i}", level) < 5e-5
        assert fpn.output_shape()[f"p{i + 3}"].stride == 2 ** (i + 3)
