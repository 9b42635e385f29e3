"""FLOPs of backbones and operators against fvcore's and PyTorch's own counters."""

from collections.abc import Iterator

import pytest
import torch
from detectron2.config import instantiate
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitadapter.analysis import FlopCounter
from vitadapter.engine.overrides import load_config
from vitadapter.model_zoo import get_config
from vitadapter.modeling.backbone import (
    CSwinAttention,
    GlobalAttention,
    PaleAttention,
    ViTAdapter,
    ViTBaseline,
)
from vitadapter.ops import MSDeformAttn, MSDeformAttnReference, ms_deform_attn

MASK_RCNN = "COCO/mask_rcnn_vit_adapter_s_deit_1x"


@pytest.fixture(params=["vit_adapter.py:vit_adapter_tiny", "vit_baseline.py:vit_baseline_tiny"])
def backbone(request: pytest.FixtureRequest) -> Iterator[ViTAdapter | ViTBaseline]:
    file, name = request.param.split(":")
    cfg = get_config(f"common/models/{file}")[name]
    if "attention" in cfg:
        cfg.attention = MSDeformAttnReference  # fvcore cannot trace our operator
    return instantiate(cfg).eval()


def count(module: nn.Module, *inputs: object) -> FlopCounter:
    with torch.no_grad(), FlopCounter() as counter:
        module(*inputs)
    return counter


def test_backbones_agree_with_fvcore(backbone: nn.Module) -> None:
    images = torch.zeros(1, 3, 128, 192)
    found = count(backbone, images).flops.total()
    with torch.no_grad():
        fvcore = FlopCountAnalysis(backbone, images).unsupported_ops_warnings(False)
        fvcore.set_op_handle("aten::scaled_dot_product_attention", _attention)
        assert fvcore.total() == pytest.approx(found, rel=0.01)
    assert count(backbone.to("meta"), images.to("meta")).flops.total() == found


def _attention(inputs: list[torch._C.Value], outputs: list[torch._C.Value]) -> int:
    """Queries times keys, and weights times values."""
    batch, heads, queries, channels = inputs[0].type().sizes()
    keys = inputs[1].type().sizes()[2]
    return 2 * batch * heads * queries * keys * channels


def test_paper_backbone_agrees_with_pytorch() -> None:
    """Its counter takes a multiply-add as two, and leaves out norms and interpolation."""
    with torch.device("meta"):
        backbone = instantiate(load_config(MASK_RCNN).model.backbone).eval()
        images = torch.zeros(1, 3, 800, 1280)
    found = count(backbone, images).flops
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        backbone(images)
    names = "addmm", "bmm", "convolution", "mm", "vitadapter::ms_deform_attn_fused"
    products = sum(found["", name] for name in names)
    assert products == theirs.get_total_flops() // 2
    assert products == pytest.approx(found.total(), rel=0.01)


def test_deformable_attention_is_counted_with_its_projections() -> None:
    dim, queries, heads, levels, points = 24, 10, 2, 2, 4
    shapes = ((4, 6), (2, 3))
    tokens = sum(h * w for h, w in shapes)
    module = MSDeformAttn(dim, heads, levels, points).eval()
    counter = count(
        module,
        torch.zeros(1, queries, dim),
        torch.zeros(1, queries, 1, 2),
        torch.zeros(1, tokens, dim),
        shapes,
    )
    taps = heads * levels * points
    projections = queries * dim * 3 * taps + tokens * dim * dim + queries * dim * dim
    sampled = counter.flops.pop(("", "vitadapter::ms_deform_attn_fused"))
    assert sampled == queries * dim * levels * points * (4 + 1)
    assert counter.flops.total() == projections


@pytest.mark.parametrize(
    ("attention", "keys", "lepe"),
    [
        # By rows and by columns: keys of a query of stride 16, in maps of 8 x 12, 4 x 6 and 2 x 3.
        (GlobalAttention, (126, 126), 0),
        (CSwinAttention, (4 * 12 + 2 * 6 + 3, 4 * 8 + 2 * 4 + 2), 24 * 24 * 9),
        (PaleAttention, (4 * 12 + 2 * 6 + 2 * 3, 4 * 8 + 2 * 4 + 2 * 2), 0),
    ],
)
def test_attention_of_stripes_and_pales_is_counted(
    attention: type[nn.Module], keys: tuple[int, int], lepe: int
) -> None:
    """The same on the CPU, by its fused kernel, and on the meta device."""
    dim, queries, shapes = 24, 4 * 6, ((8, 12), (4, 6), (2, 3))
    module = attention(dim, 2, 3, 4).eval()
    inputs = [torch.zeros(1, queries, dim), None, torch.zeros(1, 126, dim)]
    flops = count(module, *inputs, shapes).flops
    assert flops["", "_scaled_dot_product_flash_attention_for_cpu"] == queries * sum(keys) * dim
    assert flops["", "convolution"] == lepe
    assert flops.total() == queries * sum(keys) * dim + 2 * (queries + 126) * dim * dim + lepe
    meta = [x if x is None else x.to("meta") for x in inputs]
    assert count(module.to("meta"), *meta, shapes).flops.total() == flops.total()


def test_both_forms_of_the_operator_cost_the_same() -> None:
    def run() -> torch.Tensor:
        locations = torch.zeros(1, 5, 2, 1, 4, 2)
        return ms_deform_attn(torch.zeros(1, 6, 2, 8), [(2, 3)], locations, locations[..., 0])

    with torch.no_grad(), FlopCounter() as counter:
        run()
    assert counter.flops == {("", "vitadapter::ms_deform_attn"): 5 * 16 * 4 * 5}


def test_operators_without_a_formula_are_named() -> None:
    x = torch.zeros(4, 4)
    with torch.no_grad(), FlopCounter(lambda: "head") as counter:
        torch.linalg.inv_ex(x)
        (x + x).view(16).clone().relu()
    assert counter.flops.total() == 0
    assert counter.not_counted == {("head", "linalg_inv_ex"): 1, ("head", "add"): 1}
