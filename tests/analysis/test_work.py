"""Launches, bytes and FLOPs of a GPU against sums by hand and PyTorch's own counter."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vitadapter.analysis import Work, count_work
from vitadapter.analysis.work import GPU, LAUNCH_SECONDS, Call
from vitadapter.commands.analyze_model import main
from vitadapter.layers.fast import plain_layers
from vitadapter.modeling.backbone import ViT, ViTAdapter


def work_of(run: Callable[[], object], dtype: torch.dtype | None = None) -> Work:
    """The work of a function that needs no module."""
    return count_work(nn.Identity(), run, dtype=dtype)


def test_a_linear_layer_reads_and_writes_each_tensor_once() -> None:
    with FakeTensorMode():
        layer, x = nn.Linear(20, 30), torch.empty(10, 20, requires_grad=True)
        forward = work_of(lambda: layer(x))
        step = work_of(lambda: layer(x).sum().backward())
    (call,) = forward
    assert call == Call("", "addmm", 1, 4 * (30 + 10 * 20 + 20 * 30), 4 * 10 * 30, 10 * 20 * 30)
    # The gradient of a sum is one value for all elements.
    products = [call for call in step if call.operator == "mm"]
    assert sorted(call.read for call in products) == [4 * (1 + 200), 4 * (1 + 600)]
    assert [call.flops for call in products] == [6000, 6000]


@pytest.mark.parametrize(
    ("run", "read", "written"),
    [
        (lambda x: x.view(100).unsqueeze(0).expand(5, 100), 0, 0),
        (lambda x: torch.empty_like(x), 0, 0),
        (lambda x: x.float().contiguous(), 0, 0),
        (lambda x: torch.zeros_like(x), 0, 400),
        (lambda x: x.new_zeros(5), 0, 20),
        (lambda x: x[:1].expand(10, 10).clone(), 40, 400),
        (lambda x: x.add_(1), 400, 400),
        (lambda x: x.copy_(x.new_empty(10)), 40, 400),
        (lambda x: x.to(torch.bfloat16), 400, 200),
        (lambda x: torch.cat([x, x[:2]]), 480, 480),
    ],
)
def test_bytes_of_operators(run: Callable[[Tensor], object], read: int, written: int) -> None:
    with FakeTensorMode():
        x = torch.empty(10, 10)
        work = work_of(lambda: run(x))
    assert (sum(c.read for c in work), sum(c.written for c in work)) == (read, written)
    assert work.launches == (written > 0)


def test_products_of_a_step_are_those_that_pytorch_counts() -> None:
    with torch.device("meta"):
        net = ViT(embed_dim=32, depth=2, num_heads=2, window_size=3, window_block_indexes=[0])
        model = ViTAdapter(net, num_interactions=1, deform_num_heads=2, conv_dim=8, norm="BN")
        images = torch.empty(2, 3, 64, 96)

        def step() -> None:
            sum(out.sum() for out in model(images).values()).backward()

        # The fast layers would be plain in their counter, because of its hooks.
        with plain_layers():
            work = count_work(model, step, dtype=None, parts=["net", "spm"])
            with FlopCounterMode(display=False) as theirs:
                step()
    # Attention consists of batched products in their run, since the meta device has no other.
    names = ("addmm", "mm", "convolution", "convolution_backward")
    found = {name: calls.flops for name, calls in work.by("operator").items()}
    counts = theirs.get_flop_counts()["Global"]
    assert {f"aten.{name}": 2 * found.get(name, 0) for name in names} == {
        f"aten.{name}": counts.get(getattr(torch.ops.aten, name), 0) for name in names
    }
    assert set(work.by("part")) == {"", "net", "spm"}


class Stage(nn.Module):
    """Contains a layer: what is listed has to, since layers have no hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class TwoStages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Stage()
        self.second = Stage()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.first(x))
        return checkpoint(self.second, x, use_reentrant=False)


def test_gradients_and_recomputation_belong_to_the_part_that_they_are_of() -> None:
    with FakeTensorMode():
        model = TwoStages()

        def step() -> None:
            model(torch.empty(3, 8)).sum().backward()

        parts = count_work(model, step, dtype=None, parts=["first", "second"]).by("part")
    operators = {part: Counter(call.operator for call in calls) for part, calls in parts.items()}
    # The image has no gradient.
    assert (operators["first"]["addmm"], operators["first"]["mm"]) == (1, 1)
    assert operators["second"]["mm"] == 2
    assert operators[""]["sigmoid_backward"] == 1
    assert not {"mm", "addmm"} & set(operators[""])


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_one_kernel_in_half_precision(masked: bool) -> None:
    with FakeTensorMode():
        q = torch.empty(2, 3, 40, 16, requires_grad=True)
        mask = torch.empty(1, 1, 40, 40, requires_grad=True) if masked else None

        def step() -> None:
            F.scaled_dot_product_attention(q, q, q, attn_mask=mask).sum().backward()

        work = work_of(step, torch.bfloat16).by("operator")
    name = "_scaled_dot_product_efficient_attention"
    (forward,), (backward,) = work[name], work[f"{name}_backward"]
    assert forward.flops == 2 * 2 * 3 * 40 * 40 * 16
    assert (forward.is_half, backward.is_half) == (True, True)
    assert forward.launches == backward.launches == 1
    assert not {"bmm", "_softmax"} & set(work)


def test_what_is_recomputed_runs_as_on_a_gpu() -> None:
    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, F.layer_norm(x, (16,)))

    with FakeTensorMode():
        x = torch.empty(2, 3, 40, 16, requires_grad=True)

        def step() -> None:
            checkpoint(attend, x, use_reentrant=False).sum().backward()

        work = work_of(step, torch.bfloat16).by("operator")
    assert work["_scaled_dot_product_efficient_attention"].launches == 2
    assert not any(call.is_half for call in work["native_layer_norm"])
    assert not any("flash" in name for name in work)


def test_norms_are_float32_and_products_half_precision_as_gpu_autocast_has_it() -> None:
    with FakeTensorMode():
        model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8))
        work = count_work(model, lambda: model(torch.empty(4, 8))).by("operator")
    assert not any(call.is_half for call in work["native_layer_norm"])
    assert all(call.is_half for call in work["addmm"])


def test_least_time_is_that_of_bytes_products_or_launches() -> None:
    gpu = GPU(bandwidth=1e9, half=1e12, single=1e10)
    moves = Call("", "clone", 1, read=10**6, written=10**6)
    multiplies = Call("", "mm", 1, read=0, written=1, flops=10**9, is_half=True)
    assert moves.seconds(gpu) == pytest.approx(2e-3)
    assert multiplies.seconds(gpu) == pytest.approx(1e-3)
    assert Work([moves, multiplies]).seconds(gpu) == pytest.approx(3e-3)
    small = Work([Call("", "add", 1, 4, 4)] * 100)
    assert small.seconds(gpu) == pytest.approx(100 * LAUNCH_SECONDS)


def test_command_prints_the_work_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    net = ["depth=4", "embed_dim=64", "num_heads=2", "window_block_indexes=[]"]
    overrides = [f"model.backbone.bottom_up.net.{override}" for override in net]
    overrides += ["model.backbone.bottom_up.deform_num_heads=4", "train.amp.enabled=True"]
    options = ["--size", "32", "64", "--batch", "2", "--work"]
    main(["ADE20K/semantic_fpn_vit_adapter_t_deit_80k", *options, *overrides])
    printed = capsys.readouterr().out
    assert "| training, 2 x 32 x 64 " in printed
    assert "| backbone.bottom_up.net " in printed
    assert "_backward " in printed
    assert "| H100  |" in printed
