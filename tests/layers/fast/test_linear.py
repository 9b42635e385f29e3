import weakref

import pytest
import torch
import torch.nn.functional as F
from linear_layers import gradients, read
from torch import nn
from torch.utils.checkpoint import checkpoint

from vitadapter.layers.fast import linear, recomputed, run_linear


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (1,), (2, 3, 5), (2, 3, 4, 5), (1, 1), (33, 16)])
def test_equals_pytorch(shape, dtype, expand):
    torch.manual_seed(0)
    channels = shape[-1]
    x, weight, bias = torch.randn(shape), torch.randn(6, channels), torch.randn(6)
    expected = gradients(F.linear, x.double(), weight.double(), bias.double(), expand=expand)
    found = gradients(
        lambda x, *parameters: linear(read(x), *parameters),
        *(t.to(dtype) for t in (x, weight, bias)),
        expand=expand,
    )
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
    for ours, theirs in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert ours.dtype == dtype
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :, 3:11],
        lambda x: x[:, ::2, :8],
        lambda x: x.transpose(0, 1)[..., :8],
        lambda x: x[:1, :1, :8].expand(4, 3, 8),
    ],
)
def test_views_with_gaps(view):
    torch.manual_seed(0)
    x = view(torch.randn(4, 6, 16))
    weight = torch.randn(5, 16)[:, ::2]
    found = gradients(lambda x, weight: linear(read(x), weight), x, weight)
    torch.testing.assert_close(found, gradients(F.linear, x, weight), rtol=1e-5, atol=1e-5)


def test_no_rows():
    layer = nn.Linear(4, 3)
    output = run_linear(layer, read(torch.zeros(2, 0, 4, requires_grad=True)))
    assert output.shape == (2, 0, 3)
    output.sum().backward()
    assert layer.weight.grad.abs().max() == 0


def test_second_derivatives():
    torch.manual_seed(0)
    penalties = []
    for run in (run_linear, nn.Linear.__call__):
        torch.manual_seed(1)
        layer = nn.Linear(4, 3)
        x = torch.randn(5, 4, requires_grad=True)
        (grad,) = torch.autograd.grad(run(layer, read(x)).square().sum(), x, create_graph=True)
        grad.square().sum().backward()
        penalties.append((x.grad, layer.weight.grad))
    torch.testing.assert_close(penalties[0], penalties[1])
    # No gradient comes in that needs one itself: nothing may get lost for that.
    x = torch.randn(5, 4, requires_grad=True)
    layer = nn.Linear(4, 3)
    (grad,) = torch.autograd.grad(run_linear(layer, read(x)).sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert layer.weight.grad.abs().max() > 0


def test_frozen_parameters_keep_nothing_to_compute():
    layer = nn.Linear(4, 3).requires_grad_(False)
    assert not run_linear(layer, read(torch.randn(2, 4))).requires_grad
    x = torch.randn(2, 4, requires_grad=True)
    run_linear(layer, read(x)).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, 4))
    assert layer.weight.grad is None


def test_activation_checkpointing_frees_the_inputs():
    kept = []

    def run(x, weight):
        hidden = x * 2
        kept.append(weakref.ref(hidden))
        return linear(recomputed(F.gelu, hidden), weight)

    x = torch.randn(5, 4, requires_grad=True)
    weight = torch.randn(3, 4, requires_grad=True)
    output = checkpoint(run, x, weight, use_reentrant=False)
    assert kept[0]() is None
    output.sum().backward()
    expected = torch.autograd.grad(F.linear(F.gelu(x * 2), weight).sum(), (x, weight))
    torch.testing.assert_close((x.grad, weight.grad), expected)


def test_trained_bias_alone():
    layer = nn.Linear(4, 3)
    layer.weight.requires_grad_(False)
    run_linear(layer, read(torch.randn(2, 4))).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 2.0))


@pytest.mark.parametrize("rows", [3, 50])  # fewer and more than input channels
@pytest.mark.parametrize("bias", [True, False])
def test_layer_scale(rows, bias):
    torch.manual_seed(0)
    layer = nn.Linear(8, 4, bias=bias).double()
    x, gamma = torch.randn(2, rows, 8).double(), torch.randn(4).double()
    results = []
    for run in (run_linear, lambda layer, x, gamma: gamma * layer(x)):
        leaves = [t.clone().requires_grad_() for t in (x, gamma)]
        layer.zero_grad()
        output = run(layer, *leaves)
        output.square().sum().backward()
        results.append([output, *(t.grad for t in (*leaves, *layer.parameters()))])
    torch.testing.assert_close(*results)


def test_layer_scale_keeps_no_output():
    kept = []
    layer, gamma = nn.Linear(8, 4), nn.Parameter(torch.full((4,), 0.1))
    x = torch.randn(100, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run_linear(layer, x, gamma)
    assert max(t.numel() for t in kept if t.data_ptr() != x.data_ptr()) == 32


@pytest.mark.parametrize("rows", [3, 50])
def test_layer_scale_of_what_a_user_has_put_there(rows):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer, x, gamma = Doubled(8, 4), torch.randn(rows, 8), torch.randn(4)
    torch.testing.assert_close(run_linear(layer, x, gamma), gamma * layer(x))
    torch.testing.assert_close(run_linear(layer, x), layer(x))


def test_autocast():
    layer = nn.Linear(8, 4)
    x = torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = run_linear(layer, read(x)), layer(x)
    assert outputs[0].dtype == torch.bfloat16
    torch.testing.assert_close(*outputs)


def test_wrong_channels_are_refused_as_by_pytorch():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_linear(nn.Linear(8, 4), read(torch.randn(2, 7)))


def test_layer_scale_that_float16_cannot_hold_in_weights() -> None:
    """As official nets start with; a weight of 0.02 times that would be 0."""
    layer, gamma = nn.Linear(8, 4, bias=False), torch.full((4,), 1e-6)
    nn.init.constant_(layer.weight, 0.02)
    x = torch.ones(2, 64, 8)
    with torch.autocast("cpu", dtype=torch.float16):
        found = run_linear(layer, x, gamma)
    torch.testing.assert_close(found, torch.full((2, 64, 4), 1.6e-7), rtol=1e-2, atol=0)


def test_batches_of_gradients():
    x, weight, bias = (torch.randn(s, requires_grad=True) for s in ((3, 5, 8), (4, 8), (4,)))
    into = torch.randn(6, 3, 5, 4)
    found, expected = (
        torch.autograd.grad(run(x, weight, bias), (x, weight, bias), into, is_grads_batched=True)
        for run in (lambda x, *others: linear(read(x), *others), F.linear)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rows", [3, 50])
def test_layer_scale_of_another_dtype(rows):
    layer, x, gamma = nn.Linear(8, 4).bfloat16(), torch.randn(rows, 8).bfloat16(), torch.randn(4)
    assert run_linear(layer, x, gamma).equal(gamma * layer(x))
