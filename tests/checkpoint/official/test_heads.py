"""Necks and heads of mmdet: with converted weights, Detectron2's compute the same."""

from types import ModuleType

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.proposal_generator import StandardRPNHead
from torch import Tensor, nn

from vitadapter.checkpoint.official.conversion import NameTable
from vitadapter.checkpoint.official.layouts import FPN as FPN_ROWS
from vitadapter.checkpoint.official.layouts import RPN as RPN_ROWS

LEVELS = ("res2", "res3", "res4", "res5")


class Features(Backbone):
    """Gives back what it is given."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=192, stride=4 * 2**i) for i, name in enumerate(LEVELS)}


def load(
    module: nn.Module,
    rows: tuple[tuple[str, str], ...],
    official: dict[str, Tensor],
    prefixes: tuple[str, str],
) -> None:
    """Official names below the first prefix become the module's, which the second one precedes."""
    table = NameTable(rows)
    state = {}
    for name, tensor in official.items():
        ours = table.to_ours(prefixes[0] + name)
        assert ours.startswith(prefixes[1])
        state[ours.removeprefix(prefixes[1])] = tensor
    module.load_state_dict(state)
    module.double().eval()


def make_inputs(golden: ModuleType, meta: dict[str, object]) -> list[Tensor]:
    return [
        torch.from_numpy(golden.make_input(meta["feature_seed"] + i, shape)).double()
        for i, shape in enumerate(meta["levels"])
    ]


@torch.no_grad()
def test_fpn(golden: ModuleType) -> None:
    meta, keys, arrays = golden.load(golden.path("mmdet2_fpn_std"))
    fpn = FPN(Features(), LEVELS, 256, top_block=LastLevelMaxPool())
    official = golden.make_state_dict(keys)
    load(fpn, FPN_ROWS, official, ("neck.", "backbone."))
    outputs = fpn(dict(zip(LEVELS, make_inputs(golden, meta), strict=True)))
    assert list(outputs) == ["p2", "p3", "p4", "p5", "p6"]
    for i, output in enumerate(outputs.values()):
        assert golden.compare(arrays, "r0", f"p{i}", output)["max_abs"] < 1e-9


@torch.no_grad()
def test_rpn(golden: ModuleType) -> None:
    meta, keys, arrays = golden.load(golden.path("mmdet2_rpn"))
    head = StandardRPNHead(in_channels=256, num_anchors=3)
    prefixes = ("rpn_head.", "proposal_generator.rpn_head.")
    load(head, RPN_ROWS, golden.make_state_dict(keys), prefixes)
    logits, deltas = head(make_inputs(golden, meta))
    for i in range(5):
        assert golden.compare(arrays, "r0", f"cls{i}", logits[i])["max_abs"] < 1e-9
        assert golden.compare(arrays, "r0", f"bbox{i}", deltas[i])["max_abs"] < 1e-9


def test_a_table_reads_both_ways() -> None:
    table = NameTable(
        [("a.{i}.x.{j}.bn.", "b{i+1}.y{j}.norm."), ("a.{i}.x.{j}.", "b{i+1}.y{j}."), ("c.", "d.")]
    )
    pairs = {
        "a.0.x.12.bn.weight": "b1.y12.norm.weight",
        "a.3.x.0.weight": "b4.y0.weight",
        "c.a.0.bias": "d.a.0.bias",
    }
    for official, ours in pairs.items():
        assert table.to_ours(official) == ours
        assert table.to_official(ours) == official
    for name in ("a.x.x.0.weight", "x.c.bias", "a0.x.0.", ""):
        assert table.to_ours(name) is None
    assert table.to_official("b0.y0.weight") is None  # would be number -1
