from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.modeling import FPN
from torch import Tensor, nn

from vitadapter.modeling.backbone import ExtraAttention, ViT, ViTAdapter, ViTBaseline

NAMES = ["res2", "res3", "res4", "res5"]


def _bottom_up(dim: int = 32) -> ViTBaseline:
    return ViTBaseline(ViT(embed_dim=dim, depth=4, num_heads=2))


class Features(nn.Module):
    """Stands for the wrapped backbone: hands out given maps."""

    def __init__(self, bottom_up: ViTBaseline) -> None:
        super().__init__()
        self.shapes = bottom_up.output_shape()

    def output_shape(self) -> dict[str, object]:
        return self.shapes

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(NAMES, features, strict=True))


@pytest.fixture(scope="module")
def case(golden: ModuleType) -> tuple[dict, list, dict, ExtraAttention]:
    meta, keys, arrays = golden.load(golden.path("det_extra_attention"))
    state = golden.make_state_dict(keys)
    assert golden.check_weights(keys, arrays, state) < 1e-5
    args = meta["args"]
    model = ExtraAttention(
        Features(_bottom_up(args["in_channels"][-1])),
        num_heads=args["num_head"],
        ffn_ratio=args["ffn_ratio"] if args["with_ffn"] else 0,
        drop_path_rate=args["drop_path"],
    )
    # The official names are ours.
    model.load_state_dict(state, strict=True)
    return meta, keys, arrays, model.eval()


def _inputs(golden: ModuleType, meta: dict, dtype: torch.dtype) -> list[Tensor]:
    run = meta["runs"][0]
    return [
        torch.from_numpy(golden.make_input(seed, shape)).to(dtype).requires_grad_()
        for seed, shape in zip(run["input_seed"], run["input_shape"], strict=True)
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float64, 1e-9)])
def test_outputs(golden: ModuleType, case: tuple, dtype: torch.dtype, tolerance: float) -> None:
    meta, _, arrays, model = case
    outputs = model.to(dtype)(_inputs(golden, meta, dtype))
    assert list(outputs) == NAMES
    for i, output in enumerate(outputs.values(), start=1):
        assert golden.compare(arrays, "r0", f"f{i}", output)["max_abs"] < tolerance


@pytest.mark.parametrize("use_act_checkpoint", [False, True])
def test_gradients(golden: ModuleType, case: tuple, use_act_checkpoint: bool) -> None:
    meta, keys, arrays, model = case
    model.double().zero_grad()
    model.use_act_checkpoint = use_act_checkpoint
    inputs = _inputs(golden, meta, torch.float64)
    objective = sum(
        (output * torch.from_numpy(golden.make_input(9001 + j, output.shape)).double()).sum()
        for j, output in enumerate(model(inputs).values())
    )
    objective.backward()
    assert objective.item() == pytest.approx(float(arrays["r0_objective"]), rel=1e-9)
    found = [x.grad.abs().sum().item() for x in inputs]
    np.testing.assert_allclose(found, arrays["r0_input_grad_abs_sum"], rtol=1e-9)
    parameters = dict(model.named_parameters())
    assert len(keys) == len(parameters)
    for (name, *_), expected in zip(keys, arrays["r0_param_grads"], strict=True):
        grad = parameters[name].grad
        found = [grad.abs().sum().item(), (grad * parameters[name]).sum().item()]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * max(1.0, expected[0]))


def test_composes_with_the_adapter_and_an_fpn() -> None:
    adapter = ViTAdapter(ViT(embed_dim=32, depth=4, num_heads=2), deform_num_heads=2, norm="GN")
    extra = ExtraAttention(adapter, num_heads=4, drop_path_rate=0.1, use_act_checkpoint=True)
    model = FPN(extra, NAMES, 32)
    assert extra.output_shape() == adapter.output_shape()
    assert extra.size_divisibility == 32
    assert extra.padding_constraints == adapter.padding_constraints
    outputs = model(torch.randn(2, 3, 64, 96))
    assert outputs["p5"].shape == (2, 32, 2, 3)
    sum(output.square().mean() for output in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in extra.parameters())


def test_without_ffn_it_is_pytorchs_attention() -> None:
    """A pre-norm transformer layer whose feed-forward branch adds nothing."""
    extra = ExtraAttention(Features(_bottom_up()), num_heads=4, ffn_ratio=0).eval()
    assert not any(name.startswith(("ffn", "norm2")) for name in extra.state_dict())
    layer = nn.TransformerEncoderLayer(32, 4, 8, batch_first=True, norm_first=True, dropout=0.0)
    for name, tensor in extra.attn.qkv.state_dict().items():
        getattr(layer.self_attn, f"in_proj_{name}").data.copy_(tensor)
    layer.self_attn.out_proj.load_state_dict(extra.attn.proj.state_dict())
    nn.init.zeros_(layer.linear2.weight)
    nn.init.zeros_(layer.linear2.bias)
    feature = torch.randn(2, 32, 3, 5)
    expected = extra.final_norm(layer(feature.flatten(2).transpose(1, 2)))
    found = extra.attend(feature).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_keeps_the_weights_of_the_backbone() -> None:
    bottom_up = _bottom_up()
    before = {name: tensor.clone() for name, tensor in bottom_up.state_dict().items()}
    ExtraAttention(bottom_up)
    for name, tensor in bottom_up.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(in_feature="res6"), r"in_feature must be one of \['res2'.*got 'res6'"),
        (dict(num_heads=5), r"num_heads must divide res5's 32 channels, got 5"),
        (dict(num_heads=0), r"num_heads must divide"),
        (dict(drop_path_rate=1.0), r"drop_path_rate in \[0, 1\).*drop_path_rate=1.0"),
        (dict(ffn_ratio=-1.0), r"ffn_ratio >= 0.*ffn_ratio=-1.0"),
    ],
)
def test_bad_arguments(settings: dict[str, str | float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExtraAttention(_bottom_up(), **settings)
