import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitadapter.layers.fast import plain_layers, recomputed, run_and_recompute, run_linear
from vitadapter.layers.fast.recompute import recipe_of


def saved_by(run, layers: nn.Module) -> int:
    """Numbers kept for the backward pass, without parameters and statistics."""
    known = {tensor.data_ptr() for tensor in layers.state_dict().values()}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    assert output.requires_grad
    return sum(tensor.numel() for tensor in kept.values())


def layer_and_linear(kind: str) -> nn.ModuleList:
    torch.manual_seed(0)
    layer = {"norm": nn.LayerNorm(6), "gelu": nn.GELU(), "tanh": nn.GELU("tanh")}[kind]
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return nn.ModuleList([layer, nn.Linear(6, 4)])


def run_parts(layers: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    return run_linear(layers[1], recomputed(layers[0], x))


@pytest.mark.parametrize("kind", ["norm", "gelu", "tanh"])
def test_equals_its_parts(kind):
    layers = layer_and_linear(kind).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(run_parts(layers, x), layers[1](layers[0](x)))
    names = [name for name, _ in layers.named_parameters()]

    class Run(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return run_parts(self.layers, x)

    def run(x, *parameters):
        named = {f"layers.{n}": p for n, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Run(), named, (x,))

    inputs = (x, *(p.detach().requires_grad_() for p in layers.parameters()))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize(("kind", "statistics"), [("norm", 2 * 32), ("gelu", 0)])
def test_keeps_the_input_only(kind, statistics):
    layers = nn.ModuleList([nn.LayerNorm(64) if kind == "norm" else nn.GELU(), nn.Linear(64, 8)])
    hidden = torch.randn(32, 64, requires_grad=True) * 1
    assert saved_by(lambda: run_parts(layers, hidden), layers) == hidden.numel() + statistics
    with plain_layers():
        kept = saved_by(lambda: run_parts(layers, hidden), layers)
    assert kept == 2 * hidden.numel() + statistics


def test_frozen_linear_keeps_nothing_of_its_own():
    layers = nn.ModuleList([nn.GELU(), nn.Linear(64, 8).requires_grad_(False)])
    hidden = torch.randn(32, 64, requires_grad=True) * 1
    assert saved_by(lambda: run_parts(layers, hidden), layers) == hidden.numel()  # the GELU's


@pytest.mark.parametrize("frozen", ["norm", "layer", "input", "all but the norm"])
def test_frozen_parts(frozen):
    grads = []
    for run in (run_parts, lambda layers, x: layers[1](layers[0](x))):
        layers = layer_and_linear("norm")
        x = torch.randn(3, 6, requires_grad=frozen in ("norm", "layer"))
        layers[0].requires_grad_(frozen != "norm")
        layers[1].requires_grad_(frozen in ("norm", "input"))
        run(layers, x).square().sum().backward()
        grads.append([t.grad for t in (x, *layers.parameters())])
    for ours, plain in zip(*grads, strict=True):
        assert (ours is None) == (plain is None)
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("kind", ["norm", "gelu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_and_half_precision(kind, dtype):
    layers = layer_and_linear(kind).to(dtype)
    x = torch.randn(16, 6, dtype=dtype, requires_grad=True)
    grads = []
    for run in (run_parts, lambda layers, x: layers[1](layers[0](x))):
        x.grad = None
        layers.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            output = run(layers, x)
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
        grads.append([output, x.grad, *(p.grad for p in layers.parameters())])
    for found, expected in zip(*grads, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=3e-2, atol=5e-2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Identity(),
        nn.RMSNorm(6),
        nn.LayerNorm(6, elementwise_affine=False),
        nn.LayerNorm((5, 6)),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
    ],
    ids=str,
)
def test_other_layers(layer):
    linear = nn.Linear(6, 4)
    x = torch.randn(5, 6)
    results = []
    for run in (recomputed, lambda layer, x: layer(x)):
        torch.manual_seed(0)
        inputs = x.clone().requires_grad_()
        linear.zero_grad()
        output = run_linear(linear, run(layer, inputs))
        output.square().sum().backward()
        results.append([output, inputs.grad, linear.weight.grad])
    torch.testing.assert_close(*results)


def test_a_function_of_several_tensors():
    linear = nn.Linear(6, 4)
    a, b = torch.randn(5, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    run_linear(linear, recomputed(lambda a, b: a.sin() * b, a, b)).square().sum().backward()
    found = [a.grad, b.grad, linear.weight.grad]
    for tensor in (a, b, linear.weight):
        tensor.grad = None
    linear(a.sin() * b).square().sum().backward()
    torch.testing.assert_close(found, [a.grad, b.grad, linear.weight.grad])


@pytest.mark.parametrize("change", ["output", "input"])
def test_a_tensor_changed_in_place_is_kept_as_it_is(change):
    x = torch.randn(5, 6)
    linear = nn.Linear(6, 4)
    activated = recomputed(nn.GELU(), x)
    assert recipe_of(activated) is not None
    (activated if change == "output" else x).mul_(3.0)
    assert recipe_of(activated) is None
    expected = activated.clone()
    run_linear(linear, activated).sum().backward()
    torch.testing.assert_close(linear.weight.grad, expected.sum(0).expand(4, 6))


def test_a_change_after_the_linear_layer_is_refused_as_by_pytorch():
    x = torch.randn(5, 6)
    linear = nn.Linear(6, 4)
    output = run_linear(linear, recomputed(nn.GELU(), x))
    x.mul_(3.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_noted(mode):
    x = torch.randn(5, 6)
    with mode():
        assert recipe_of(recomputed(nn.GELU(), x)) is None
        made = x * 1
    if mode is torch.inference_mode:  # such tensors may not be kept for a backward pass
        assert recipe_of(recomputed(nn.GELU(), made)) is None


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, lambda c: nn.GroupNorm(2, c)])
def test_recomputed_layers_equal_plain_ones(norm):
    torch.manual_seed(0)
    plain = nn.Sequential(norm(4), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3)).double()
    recomputed_ones = copy.deepcopy(plain)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    results = []
    for run, layers in ((lambda m, x: m(x), plain), (run_and_recompute, recomputed_ones)):
        for _ in range(3):
            inputs = x.clone().requires_grad_()
            output = run(layers, inputs)
            output.square().sum().backward()
        results.append([output, inputs.grad, *(p.grad for p in layers.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # Batches are counted once, and the running statistics see each batch once.
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(recomputed_ones.get_buffer(name), buffer)


def test_recomputed_layers_keep_their_input_only():
    layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))
    x = torch.randn(2, 4, 8, 8, requires_grad=True) * 1
    assert saved_by(lambda: layers(x), layers) >= 2 * x.numel()
    assert saved_by(lambda: run_and_recompute(layers, x), layers) <= x.numel()
    with plain_layers():
        assert saved_by(lambda: run_and_recompute(layers, x), layers) >= 2 * x.numel()


class _Counting(nn.Module):
    """Calls another module and counts how often."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.calls = 0

    def forward(self, x):
        output = self.layer(x)
        self.calls += 1
        return output


@pytest.mark.parametrize("wrapped", range(3))
def test_layers_that_are_not_known_run_once(wrapped):
    layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))
    layers[wrapped] = _Counting(layers[wrapped])
    run_and_recompute(layers, torch.randn(2, 4, 8, 8, requires_grad=True)).sum().backward()
    assert layers[wrapped].calls == 1


def test_the_last_layer_does_not_run_again(monkeypatch):
    calls = []
    forward = nn.Conv2d._conv_forward
    monkeypatch.setattr(
        nn.Conv2d, "_conv_forward", lambda self, *x: [forward(self, *x), calls.append(1)][0]
    )
    layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))
    run_and_recompute(layers, torch.randn(2, 4, 8, 8, requires_grad=True)).sum().backward()
    assert len(calls) == 1  # the second one is stopped as soon as its input is known


def test_random_layers_draw_once():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Dropout2d(0.5), nn.ReLU(), nn.Conv2d(4, 3, 1, bias=False))
    x = torch.ones(1, 4, 2, 2, requires_grad=True)
    output = run_and_recompute(layers, x)
    output.sum().backward()
    # A channel that was dropped has no gradient, one that was kept has the convolution's.
    dropped = x.grad[0, :, 0, 0] == 0
    kept = layers[2].weight.sum(0)[:, 0, 0] * 2
    torch.testing.assert_close(output[0, :, 0, 0].sum(), kept[~dropped].sum())


def test_inference_and_eval_mode():
    layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)).eval()
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(run_and_recompute(layers, x), layers(x))
    run_and_recompute(layers, x).sum().backward()
    assert layers[0].num_batches_tracked == 0


def test_gelu_function_is_a_layer_too():
    linear = nn.Linear(6, 4)
    x = torch.randn(5, 6, requires_grad=True)
    torch.testing.assert_close(run_linear(linear, recomputed(F.gelu, x)), linear(F.gelu(x)))
