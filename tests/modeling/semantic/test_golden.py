"""Heads equal those of the official release under converted weights."""

from types import ModuleType

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from vitadapter.checkpoint.official.conversion import NameTable
from vitadapter.checkpoint.official.layouts import AUXILIARY_FCN_HEAD, SEMANTIC_FPN_HEAD, UPER_HEAD
from vitadapter.modeling.semantic import FCNHead, SemanticFPNHead, UPerHead

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
SHAPES = {name: ShapeSpec(channels=256, stride=stride) for name, stride in STRIDES.items()}
FPN_SHAPES = {name.replace("res", "p"): shape for name, shape in SHAPES.items()}
HEADS = {
    "mmdet2_uper": (UPerHead, UPER_HEAD, "decode_head."),
    "mmdet2_fcn_aux": (FCNHead, AUXILIARY_FCN_HEAD, "auxiliary_head."),
    "mmdet2_fpnhead": (SemanticFPNHead, SEMANTIC_FPN_HEAD, "decode_head."),
}


def _load(head: nn.Module, state: dict[str, Tensor], rows: list, prefix: str) -> None:
    """Loads the entries of an official head, which the tables name with the model's prefixes."""
    table = NameTable(rows)
    renamed = {table.to_ours(f"{prefix}{name}"): tensor for name, tensor in state.items()}
    inner = "sem_seg_head.auxiliary_head." if isinstance(head, FCNHead) else "sem_seg_head."
    if isinstance(head, UPerHead):
        inner = "sem_seg_head.head."
    head.load_state_dict({name.removeprefix(inner): t for name, t in renamed.items()})


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_and_loss(case: str, dtype: torch.dtype, golden: ModuleType) -> None:
    meta, keys, arrays = golden.load(golden.path(case))
    make_head, rows, prefix = HEADS[case]
    state = golden.make_state_dict(keys)
    assert golden.check_weights(keys, arrays, state) < 1e-6
    # The FPN's names, which Detectron2 calls the modules by.
    shapes = (
        {f"p{2 + i}": s for i, s in enumerate(SHAPES.values())} if "fpnhead" in case else SHAPES
    )
    head = make_head(shapes, num_classes=150, norm="BN")
    _load(head, state, rows, prefix)
    head.to(dtype).eval()
    features = {
        name: torch.from_numpy(golden.make_input(meta["feature_seed"] + i, shape)).to(dtype)
        for i, (name, shape) in enumerate(zip(shapes, meta["levels"], strict=True))
    }
    labels = torch.from_numpy(arrays["labels"]).long().reshape(meta["batch"], *meta["image"])
    assert (labels == meta["ignore_index"]).any()
    with torch.no_grad():
        logits = head.layers(features) if case == "mmdet2_fpnhead" else head.logits(features)
        losses = head.losses(logits, labels)
    tolerance = 1e-9 if dtype == torch.float64 else 5e-5
    assert golden.compare(arrays, "r0", "logits", logits)["max_abs"] < tolerance
    (loss,) = losses.values()
    assert golden.compare(arrays, "r0", "loss.loss_ce", loss.reshape(1))["max_abs"] < tolerance
