import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitadapter.layers.recompute import gelu_linear, norm_linear, run_and_recompute


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


def test_gelu_linear_equals_its_parts():
    linear = nn.Linear(6, 4).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(gelu_linear(x, linear), linear(F.gelu(x)))
    inputs = (x, linear.weight.detach().requires_grad_(), linear.bias.detach().requires_grad_())

    def run(x, weight, bias):
        return gelu_linear(x, _with(linear, weight, bias))

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def _with(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    copied = copy.copy(linear)
    copied._parameters = {"weight": weight, "bias": bias}
    return copied


def test_gelu_linear_keeps_its_input_only():
    linear = nn.Linear(64, 8)
    x = torch.randn(32, 64, requires_grad=True)
    hidden = x * 1
    assert saved_by(lambda: gelu_linear(hidden, linear), linear) == hidden.numel()
    assert saved_by(lambda: linear(F.gelu(hidden)), linear) == 2 * hidden.numel()


def test_gelu_linear_of_frozen_weights():
    linear = nn.Linear(6, 4).requires_grad_(False)
    x = torch.randn(3, 6, requires_grad=True)
    gelu_linear(x, linear).sum().backward()
    found, x.grad = x.grad, None
    linear(F.gelu(x)).sum().backward()
    torch.testing.assert_close(found, x.grad)
    assert linear.weight.grad is None


def test_gelu_linear_under_autocast():
    linear = nn.Linear(64, 32)
    x = torch.randn(16, 64, requires_grad=True)
    grads = []
    for run in (lambda: gelu_linear(x, linear), lambda: linear(F.gelu(x))):
        linear.zero_grad()
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            output = run()
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
        grads.append([x.grad, linear.weight.grad, linear.bias.grad])
    for found, expected in zip(*grads, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.03, atol=0.05)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, lambda c: nn.GroupNorm(2, c)])
def test_recomputed_layers_equal_plain_ones(norm):
    torch.manual_seed(0)
    plain = nn.Sequential(norm(4), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3)).double()
    recomputed = copy.deepcopy(plain)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    results = []
    for run, layers in ((lambda m, x: m(x), plain), (run_and_recompute, recomputed)):
        for _ in range(3):
            inputs = x.clone().requires_grad_()
            output = run(layers, inputs)
            output.square().sum().backward()
        results.append([output, inputs.grad, *(p.grad for p in layers.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # Batches are counted once, and the running statistics see each batch once.
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(recomputed.get_buffer(name), buffer)


def test_recomputed_layers_keep_their_input_only():
    layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))
    x = torch.randn(2, 4, 8, 8, requires_grad=True) * 1
    assert saved_by(lambda: layers(x), layers) >= 2 * x.numel()
    assert saved_by(lambda: run_and_recompute(layers, x), layers) <= x.numel()


def test_the_last_layer_does_not_run_again():
    class Counting(nn.Conv2d):
        calls = 0

        def forward(self, x):
            output = super().forward(x)
            self.calls += 1
            return output

    layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), Counting(4, 3, 3))
    run_and_recompute(layers, torch.randn(2, 4, 8, 8, requires_grad=True)).sum().backward()
    assert layers[2].calls == 1


def test_inference_and_eval_mode():
    layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)).eval()
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(run_and_recompute(layers, x), layers(x))
    run_and_recompute(layers, x).sum().backward()
    assert layers[0].num_batches_tracked == 0


def test_norm_linear_equals_its_parts():
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(6).double(), nn.Linear(6, 4).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(norm_linear(x, norm, layer), layer(norm(x)))
    inputs = [x, *(p.detach().requires_grad_() for p in (*norm.parameters(), *layer.parameters()))]

    def run(x, *parameters):
        return norm_linear(x, _with(norm, *parameters[:2]), _with(layer, *parameters[2:]))

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_norm_linear_keeps_its_input_and_statistics_only():
    norm, layer = nn.LayerNorm(64), nn.Linear(64, 8)
    layers = nn.ModuleList([norm, layer])
    hidden = torch.randn(32, 64, requires_grad=True) * 1
    assert saved_by(lambda: norm_linear(hidden, norm, layer), layers) == hidden.numel() + 2 * 32
    assert saved_by(lambda: layer(norm(hidden)), layers) == 2 * (hidden.numel() + 32)


@pytest.mark.parametrize("frozen", ["norm", "layer", "input", "all but the norm"])
def test_norm_linear_of_frozen_parts(frozen):
    grads = []
    for run in (norm_linear, lambda x, norm, layer: layer(norm(x))):
        torch.manual_seed(0)
        norm, layer = nn.LayerNorm(6), nn.Linear(6, 4)
        x = torch.randn(3, 6, requires_grad=frozen in ("norm", "layer"))
        norm.requires_grad_(frozen != "norm")
        layer.requires_grad_(frozen in ("norm", "input"))
        run(x, norm, layer).square().sum().backward()
        grads.append([t.grad for t in (x, *norm.parameters(), *layer.parameters())])
    for ours, plain in zip(*grads, strict=True):
        assert (ours is None) == (plain is None)
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize(
    "norm",
    [nn.Identity(), nn.RMSNorm(6), nn.LayerNorm(6, elementwise_affine=False), nn.BatchNorm1d(6)],
    ids=str,
)
def test_norm_linear_of_other_norms(norm):
    layer = nn.Linear(6, 4)
    x = torch.randn(5, 6, requires_grad=True)
    torch.testing.assert_close(norm_linear(x, norm, layer), layer(norm(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norm_linear_under_autocast_and_in_half_precision(dtype):
    norm, layer = nn.LayerNorm(64).to(dtype), nn.Linear(64, 32).to(dtype)
    x = torch.randn(16, 64, dtype=dtype, requires_grad=True)
    grads = []
    for run in (norm_linear, lambda x, norm, layer: layer(norm(x))):
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            output = run(x, norm, layer)
        output.float().square().sum().backward()
        grads.append([output, x.grad])
    torch.testing.assert_close(*grads, rtol=2e-2, atol=2e-2)
