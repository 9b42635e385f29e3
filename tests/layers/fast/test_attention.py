import pytest
import torch
import torch.nn.functional as F

from vitadapter.layers.fast import attend, onednn


def leaves(shape, strided):
    torch.manual_seed(0)
    if strided:  # as cut out of a joint projection
        batch, heads, tokens, dim = shape
        return torch.randn(batch, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4).unbind(0)
    return [torch.randn(shape) for _ in range(3)]


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 600, 16), (1, 1, 512, 64), (1, 2, 513, 24)])
def test_equals_pytorch_in_double_precision(shape, strided):
    results = []
    for dtype, run in ((torch.float32, attend), (torch.float64, F.scaled_dot_product_attention)):
        q, k, v = (t.to(dtype).detach().requires_grad_() for t in leaves(shape, strided))
        output = run(q * 2, k, v)
        torch.manual_seed(1)
        (output * torch.randn(shape).to(dtype)).sum().backward()
        results.append([t.double() for t in (output, q.grad, k.grad, v.grad)])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_logits_of_any_size():
    q = torch.randn(1, 1, 512, 16) * 1e4
    expected = F.scaled_dot_product_attention(q.double(), q.double(), q.double())
    torch.testing.assert_close(attend(q, q, q).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not onednn.uses_onednn(torch.ones(1)), reason="no oneDNN with AVX-512")
def test_keeps_its_inputs_only_and_has_no_second_derivative():
    qkv = torch.randn(1, 512, 3, 2, 16, requires_grad=True)
    joint = qkv * 1
    q, k, v = joint.permute(2, 0, 3, 1, 4).unbind(0)
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.add(t.untyped_storage().data_ptr()) or t, lambda t: t
    ):
        output = attend(q, k, v)
    assert kept == {joint.untyped_storage().data_ptr()}
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(output.sum(), qkv, create_graph=True)


def test_bias_and_few_tokens():
    for tokens, bias in ((512, torch.randn(1, 2, 512, 512)), (64, None)):
        q, k, v = torch.randn(3, 1, 2, tokens, 16).unbind(0)
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        torch.testing.assert_close(attend(q, k, v, bias), expected)
