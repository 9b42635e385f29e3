"""MSDeformAttn: golden files, initialisation, tracing, precision, bad arguments."""

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from ms_deform_attn_cases import SHAPES, TOKENS, assert_same
from omegaconf import OmegaConf
from torch import Tensor

from vitadapter.engine.overrides import apply_overrides
from vitadapter.model_zoo import get_config
from vitadapter.ops import MSDeformAttn, MSDeformAttnReference


def make_module(**changes: int | float) -> MSDeformAttn:
    """A small module whose offsets depend on the query."""
    torch.manual_seed(0)
    arguments = {"embed_dim": 16, "num_heads": 4, "num_levels": 2, "num_points": 3, "ratio": 0.5}
    module = MSDeformAttn(**(arguments | changes))
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.2)
    torch.nn.init.normal_(module.attention_weights.weight, std=0.2)
    return module


def module_inputs(batch: int = 2, queries: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, queries, 16, generator=generator),
        torch.rand(1, queries, 1, 2, generator=generator),
        torch.randn(batch, TOKENS, 16, generator=generator),
    )


@pytest.mark.parametrize("case", ["module_r10", "module_r05", "module_r05_l3"])
def test_golden_module(case: str, golden: ModuleType) -> None:
    meta, _, arrays = golden.load(golden.path("op_ms_deform_attn"))
    info = next((entry for entry in meta["cases"] if entry["name"] == case), None)
    if info is None:  # of tests/golden, which has one of them
        pytest.skip("shared data absent")
    args = info["args"]
    module = MSDeformAttn(
        args["d_model"], args["n_heads"], args["n_levels"], args["n_points"], args["ratio"]
    )
    initial = arrays[f"{case}_init_offsets_bias"]
    np.testing.assert_allclose(module.sampling_offsets.bias.detach().numpy(), initial, atol=1e-6)
    module.load_state_dict(golden.make_state_dict(info["keys"]))
    module.double()

    names = ("query", "ref", "feat")
    query, reference, feat = (
        torch.from_numpy(arrays[f"{case}_{n}"]).requires_grad_() for n in names
    )
    output = module(query, reference, feat, [tuple(shape) for shape in info["shapes"]])
    output.backward(torch.from_numpy(arrays[f"{case}_grad_out"]))
    got = {"out": output, "g_query": query.grad, "g_ref": reference.grad, "g_feat": feat.grad}
    got |= {f"g_{name}": parameter.grad for name, parameter in module.named_parameters()}
    for name, tensor in got.items():
        np.testing.assert_allclose(
            tensor.detach().numpy(), arrays[f"{case}_{name}"], atol=1e-9, err_msg=name
        )


def test_module_initialisation() -> None:
    module = MSDeformAttn(64, num_heads=8, num_levels=2, num_points=3, ratio=0.5)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == {
        "sampling_offsets.weight": (96, 64),
        "sampling_offsets.bias": (96,),
        "attention_weights.weight": (48, 64),
        "attention_weights.bias": (48,),
        "value_proj.weight": (32, 64),
        "value_proj.bias": (32,),
        "output_proj.weight": (64, 32),
        "output_proj.bias": (64,),
    }
    bias = module.sampling_offsets.bias.detach().reshape(8, 2, 3, 2)
    steps = torch.tensor([1.0, 2.0, 3.0])[:, None]
    for head, direction in {0: [1, 0], 1: [1, 1], 2: [0, 1], 4: [-1, 0], 7: [1, -1]}.items():
        expected = (steps * torch.tensor(direction)).expand(2, 3, 2)
        torch.testing.assert_close(bias[head], expected, atol=1e-6, rtol=1e-6)
    for name, parameter in module.named_parameters():
        if name.startswith(("value_proj.w", "output_proj.w")):
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.8 * bound < parameter.abs().max() <= bound
        elif name != "sampling_offsets.bias":
            assert parameter.eq(0).all()


def test_reference_module_computes_the_same_without_the_kernels() -> None:
    module, inputs = make_module(), module_inputs()
    reference = MSDeformAttnReference(16, 4, 2, 3, 0.5)
    reference.load_state_dict(module.state_dict())
    results = []
    for each in (module, reference):
        with torch.profiler.profile() as profile:
            output = each(*inputs, SHAPES)
            output.square().sum().backward()
        ran = {event.key for event in profile.key_averages()}
        assert ("vitadapter::ms_deform_attn_fused" in ran) == (each is module)
        assert ("aten::grid_sampler_2d" in ran) == (each is reference)
        results.append([output, *(p.grad for p in each.parameters())])
    assert_same(*results, 1e-5)


@pytest.mark.parametrize("room", ["ops", "layers"])  # the latter in configs of earlier runs
def test_operator_is_one_override(room: str) -> None:
    config = get_config("common/models/vit_adapter.py")
    model = {"backbone": {"bottom_up": config.vit_adapter_tiny}}
    config = OmegaConf.create({"model": model}, flags={"allow_objects": True})
    key = "model.backbone.bottom_up.attention"
    assert OmegaConf.select(config, key) is MSDeformAttn
    apply_overrides(config, [f"{key}=vitadapter.{room}.MSDeformAttnReference"])
    assert OmegaConf.select(config, key) is MSDeformAttnReference
    with pytest.raises(ValueError, match=r"attention must name a class.* got 'reference'"):
        apply_overrides(config, [f"{key}=reference"])


@pytest.mark.parametrize("dynamic", [False, True])
def test_module_compiles(dynamic: bool) -> None:
    module = make_module()
    inputs = module_inputs()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    results = []
    for function in (module, compiled):
        module.zero_grad()
        output = function(*inputs, SHAPES)
        output.square().sum().backward()
        results.append([output, *(p.grad.clone() for p in module.parameters())])
    assert_same(*results, 1e-6)


class _OneMap(torch.nn.Module):
    """The module over one feature map whose size is known only at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = make_module(num_levels=1)

    def forward(self, query: Tensor, reference: Tensor, image: Tensor) -> Tensor:
        size = (image.shape[2], image.shape[3])
        return self.attention(query, reference, image.flatten(2).transpose(1, 2), [size])


def test_module_exports_with_dynamic_sizes() -> None:
    model = _OneMap().eval()
    query, reference, _ = module_inputs()
    batch, queries, height, width = (
        torch.export.Dim(name, min=2, max=64) for name in ("batch", "queries", "height", "width")
    )
    exported = torch.export.export(
        model,
        (query, reference, torch.randn(2, 16, 5, 7)),
        dynamic_shapes=({0: batch, 1: queries}, {1: queries}, {0: batch, 2: height, 3: width}),
    ).module()
    query, reference, _ = module_inputs(batch=3, queries=9)
    image = torch.randn(3, 16, 4, 9)
    torch.testing.assert_close(
        exported(query, reference, image), model(query, reference, image), atol=1e-6, rtol=0
    )


def test_module_under_autocast_keeps_coordinates() -> None:
    module, inputs = make_module(), module_inputs()
    seen = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t),
        torch.autocast("cpu", torch.bfloat16),
    ):
        output = module(*inputs, SHAPES)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), module(*inputs, SHAPES), atol=0.05, rtol=0.05)
    references = [tensor for tensor in seen if tensor.shape == inputs[1].shape]
    assert {tensor.dtype for tensor in references} == {torch.float32}


def test_module_in_bfloat16() -> None:
    module, (query, reference, value) = make_module().bfloat16(), module_inputs()
    output = module(query.bfloat16(), reference, value.bfloat16(), SHAPES)
    expected = make_module()(query, reference, value, SHAPES)
    torch.testing.assert_close(output.float(), expected, atol=0.05, rtol=0.05)


def test_gamma_multiplies_the_output() -> None:
    module, (query, points, value) = make_module(), module_inputs(queries=40)
    expected = module(query, points, value, SHAPES)
    gamma = torch.linspace(-1, 1, 16)
    for kind in (MSDeformAttn, MSDeformAttnReference):
        module.__class__ = kind
        found = module(query, points, value, SHAPES, gamma)
        torch.testing.assert_close(found, gamma * expected)
    with pytest.raises(ValueError, match=r"gamma must have shape \(embed_dim=16,\), got \(1,\)"):
        module(query, points, value, SHAPES, gamma[:1])


def test_reference_points_broadcast_over_batch_and_levels() -> None:
    module, (query, reference, value) = make_module(), module_inputs()
    expected = module(query, reference, value, SHAPES)
    output = module(query, reference.repeat(2, 1, 2, 1), value, SHAPES)
    assert torch.equal(output, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 30, "num_heads": 4}, r"num_heads must divide.*embed_dim=30"),
        ({"embed_dim": 32, "num_heads": 8, "ratio": 0.4}, r"num_heads must divide.*ratio=0.4"),
        ({"num_points": 0}, r"at least 1"),
        ({"num_levels": 0}, r"at least 1"),
        ({"num_heads": 0}, r"at least 1"),
        ({"embed_dim": -8}, r"at least 1"),
        ({"ratio": 0.0}, r"at least 1"),
    ],
)
def test_module_refuses_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MSDeformAttn(**arguments)


def test_module_refuses_bad_inputs() -> None:
    module, (query, reference, value) = make_module(), module_inputs()
    for arguments, error, message in (
        ((query[0], reference, value, SHAPES), ValueError, "query must have shape"),
        ((query, reference, value[..., :8], SHAPES), ValueError, "value must have shape"),
        ((query, reference, value, SHAPES[:1]), ValueError, "num_levels=2"),
        ((query, reference.bfloat16(), value, SHAPES), TypeError, "reference_points must be"),
        ((query, reference[:, :5], value, SHAPES), ValueError, "queries=6"),
        ((query, reference.repeat(3, 1, 1, 1), value, SHAPES), ValueError, "batch=2"),
        ((query, reference.repeat(1, 1, 1, 2), value, SHAPES), ValueError, "reference_points"),
        ((query, reference, value[:, 1:], SHAPES), ValueError, "one token per cell"),
    ):
        with pytest.raises(error, match=message):
            module(*arguments)
