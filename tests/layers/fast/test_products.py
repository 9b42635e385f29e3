import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from linear_layers import gradients, read
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vitadapter.layers.fast import as_on_gpu, linear, plain_layers, products, run_linear

ONEDNN = "mkldnn::_linear_pointwise"


@pytest.fixture
def chosen(monkeypatch):
    """oneDNN is chosen as on a processor where it is faster, and for small products, too."""
    monkeypatch.setattr(products, "_is_onednn_faster", lambda: True)
    monkeypatch.setattr(products, "_FEWEST_MULTIPLICATIONS", 1)


def calls_of_onednn(run):
    """How many products of `run` oneDNN computes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return sum(event.name == ONEDNN for event in profile.events())


def tensors(*shape):
    torch.manual_seed(0)
    return torch.randn(shape), torch.randn(6, shape[-1]), torch.randn(6)


AMD = "processor : 0\nvendor_id : AuthenticAMD\ncpu family : 26\n"


@pytest.mark.parametrize(
    ("processor", "capability", "mkl", "mkldnn", "expected"),
    [
        (AMD, "AVX512", True, True, True),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), "AVX512", True, True, False),
        (None, "AVX512", True, True, False),
        (AMD, "AVX2", True, True, False),
        (AMD, "AVX512", False, True, False),
        (AMD, "AVX512", True, False, False),
    ],
)
def test_choice_by_processor(processor, capability, mkl, mkldnn, expected, monkeypatch, tmp_path):
    if processor is not None:
        (tmp_path / "cpuinfo").write_text(processor)
    monkeypatch.setattr(products, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: mkldnn)
    assert products._is_onednn_faster.__wrapped__() is expected


def test_an_operator_of_another_pytorch_is_not_called(monkeypatch):
    has_operator = products._is_operator_known()
    monkeypatch.setattr(products, "_SCHEMA", products._SCHEMA.replace("str attr", "int attr"))
    assert has_operator
    assert not products._is_operator_known()
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert not products._is_operator_known()


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("shape", [(1, 4), (7, 1), (33, 16), (2, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("make", [lambda x: x, read], ids=["kept", "recomputed"])
def test_equals_pytorch(make, shape, expand, chosen):
    x, weight, bias = tensors(*shape)
    expected = gradients(F.linear, x.double(), weight.double(), bias.double(), expand=expand)
    found = []

    def run():
        found.append(gradients(lambda x, *p: linear(make(x), *p), x, weight, bias, expand=expand))

    assert calls_of_onednn(run) == 3
    run()
    for output, grads in found:
        for ours, theirs in zip((output, *grads), (expected[0], *expected[1]), strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
            assert ours.is_contiguous()
    for once, again in zip((found[0][0], *found[0][1]), (found[1][0], *found[1][1]), strict=True):
        assert torch.equal(once, again)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :, 3:11],
        lambda x: x[:, ::2, :8],
        lambda x: x.transpose(0, 1)[..., :8],
        lambda x: x.transpose(1, 2)[..., :8].flip(1),
        lambda x: x[:1, :1, :8].expand(4, 3, 8),
    ],
)
def test_views_without_bias(view, chosen):
    torch.manual_seed(0)
    x = view(torch.randn(8, 16, 16))
    weight = torch.randn(5, 16)[:, ::2]
    assert products.is_by_onednn(x, weight, None)
    found = gradients(linear, x, weight)
    torch.testing.assert_close(found, gradients(F.linear, x, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 1), (1, 2), ()])
def test_frozen_parts_keep_what_pytorch_keeps(trained, chosen):
    x, weight, bias = tensors(5, 4)
    for i in trained:
        (x, weight, bias)[i].requires_grad_()
    kept, results = [], []
    for run in (F.linear, linear):
        addresses = []

        def pack(tensor, addresses=addresses):
            addresses.append(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = run(x, weight, bias)
        kept.append(set(addresses))
        assert output.requires_grad == bool(trained)
        inputs = [(x, weight, bias)[i] for i in trained]
        results.append(torch.autograd.grad(output.square().sum(), inputs) if inputs else output)
    assert kept[1] == kept[0]
    torch.testing.assert_close(results[1], results[0])


def test_second_derivatives(chosen):
    penalties = []
    for run in (linear, F.linear):
        x, weight, bias = (t.requires_grad_() for t in tensors(5, 4))
        grads = torch.autograd.grad(
            run(x, weight, bias).square().sum(), (x, weight), create_graph=True
        )
        sum(grad.square().sum() for grad in grads).backward()
        penalties.append((x.grad, weight.grad, bias.grad))
    torch.testing.assert_close(*penalties, rtol=1e-5, atol=1e-3)


def test_layers_run_by_it_only_if_they_are_plain(chosen):
    layer = nn.Linear(4, 3)
    x = torch.randn(5, 4)
    assert calls_of_onednn(lambda: run_linear(layer, x)) == 1
    hooked = copy.deepcopy(layer)
    hooked.register_forward_hook(lambda module, inputs, output: None)
    for other in (hooked, parametrizations.weight_norm(copy.deepcopy(layer))):
        assert calls_of_onednn(lambda other=other: run_linear(other, x)) == 0


def test_small_products_and_other_tensors_stay_pytorchs(monkeypatch, chosen):
    x, weight, bias = tensors(5, 4)
    assert products.is_by_onednn(x, weight, bias)

    class Other(torch.Tensor):
        pass

    for others in (
        (x.double(), weight.double(), bias.double()),
        (x.bfloat16(), weight.bfloat16(), bias.bfloat16()),
        (x.to("meta"), weight.to("meta"), bias.to("meta")),
        (x.as_subclass(Other), weight, bias),
        (x, weight.as_subclass(Other), bias),
        (x[0], weight, bias),
        (x[:0], weight, bias),
        (x[:, :0], weight[:, :0], bias),
        (x, weight, bias[:1]),  # PyTorch broadcasts it
        (x, weight[0], None),
        (x.to_sparse_csr(), weight, None),
    ):
        assert not products.is_by_onednn(*others)
        assert linear(*others).shape == F.linear(*others).shape
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x[:, :3], weight, bias)
    monkeypatch.setattr(products, "_FEWEST_MULTIPLICATIONS", 6 * 4 * 5)
    assert products.is_by_onednn(x, weight, bias)
    assert not products.is_by_onednn(x[1:], weight, bias)


@pytest.mark.parametrize(
    "context",
    [
        plain_layers,
        as_on_gpu,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: FlopCounterMode(display=False),
        lambda: torch.device("cpu"),  # looks at functions that make tensors
        lambda: torch.backends.mkldnn.flags(enabled=False),
        forward_ad.dual_level,
    ],
)
def test_contexts_in_which_it_is_not_called(context, chosen):
    x, weight, bias = tensors(5, 4)
    with context():
        assert calls_of_onednn(lambda: linear(x, weight, bias)) == 0
        found, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert torch.equal(found, expected)
    assert products.is_by_onednn(x, weight, bias)


def test_flops_are_counted(chosen):
    x, weight, bias = tensors(5, 4)
    with FlopCounterMode(display=False) as counter:
        gradients(linear, x, weight, bias)
    assert counter.get_total_flops() == 3 * 2 * 5 * 4 * 6


@pytest.mark.parametrize("make", [lambda x: x, read], ids=["kept", "recomputed"])
def test_graphs_have_pytorchs_layers(make, chosen):
    layer, x = nn.Linear(4, 6), torch.randn(5, 4)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return run_linear(self.layer, make(x))

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(Model(), backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    exported = torch.export.export(Model(), (x,)).graph
    traced = torch.jit.trace(Model(), x).inlined_graph
    fx = make_fx(lambda x: linear(x, layer.weight, layer.bias))(x).graph
    assert len(graphs) == 1
    for graph in (graphs[0].graph, exported, traced, fx):
        assert "mkldnn" not in str(graph)
        assert any(name in str(graph) for name in ("linear", "addmm"))


@pytest.mark.parametrize("make", [lambda x: x, read], ids=["kept", "recomputed"])
def test_transforms_of_functions(make, chosen):
    x, weight, bias = tensors(5, 4)

    def loss(run, x, weight):
        return run(x, weight, bias).square().sum()

    def ours(x, weight):
        return loss(lambda x, *p: linear(make(x), *p), x, weight)

    def plain(x, weight):
        return loss(F.linear, x, weight)

    def per_row(run):
        return torch.func.vmap(torch.func.grad(run, argnums=1), (0, None))(x[:, None], weight)

    def jvp(run):
        return torch.func.jvp(run, (x, weight), (x.sin(), weight.cos()))

    def forward(run):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(run(forward_ad.make_dual(x, x.sin()), weight)).tangent

    def hessian(run):
        return torch.func.hessian(run)(x, weight)

    for transform in (per_row, jvp, forward, hessian):
        torch.testing.assert_close(transform(ours), transform(plain))


def test_looking_at_the_backward_pass_of_a_checkpoint(chosen):
    x, weight, bias = tensors(5, 4)
    weight.requires_grad_(True)
    loss = checkpoint(lambda x: linear(x, weight, bias).square().sum(), x, use_reentrant=False)
    with FlopCounterMode(display=False):
        loss.backward()
    assert weight.grad is not None
