import pytest
import torch
from torch import nn

from vitadapter.layers import token_maps as module
from vitadapter.layers.token_maps import depthwise_conv, join_maps, split_maps

SIZES = ((4, 6), (2, 3), (1, 2))
TOKENS = sum(h * w for h, w in SIZES)


@pytest.mark.parametrize("batch", [1, 3])
def test_maps_are_views_of_tokens(batch: int) -> None:
    tokens = torch.randn(batch, TOKENS, 5)
    maps = split_maps(tokens, SIZES)
    assert [tuple(x.shape) for x in maps] == [(batch, 5, h, w) for h, w in SIZES]
    assert maps[1].data_ptr() == tokens[:, 24:].data_ptr()
    assert torch.equal(join_maps(maps), tokens)
    # The batch stride that PyTorch's batch norm needs to recognise the layout.
    assert maps[1].stride(0) >= 5 * 2 * 3


@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_convolution_of_each_map(bias: bool) -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=bias).double()
    tokens = torch.randn(2, TOKENS, 8, dtype=torch.double, requires_grad=True)
    found = depthwise_conv(tokens, conv.weight, conv.bias, SIZES)
    maps = tokens.transpose(1, 2).split([h * w for h, w in SIZES], dim=2)
    expected = [conv(x.unflatten(2, hw)) for x, hw in zip(maps, SIZES, strict=True)]
    expected = torch.cat([x.flatten(2) for x in expected], dim=2).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    into = torch.randn_like(found)
    wanted = [tokens, *conv.parameters()]
    for grad, other in zip(
        torch.autograd.grad(found, wanted, into),
        torch.autograd.grad(expected, wanted, into),
        strict=True,
    ):
        torch.testing.assert_close(grad, other)


def test_the_type_is_that_of_the_tokens_as_under_autocast() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    tokens = torch.randn(1, TOKENS, 8, dtype=torch.bfloat16, requires_grad=True)
    found = depthwise_conv(tokens, conv.weight, conv.bias, SIZES)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert tokens.grad.dtype == torch.bfloat16
    assert conv.weight.grad.dtype == torch.float32


def test_operators_are_as_pytorch_asks_for_them() -> None:
    tokens = torch.randn(2, TOKENS, 4, requires_grad=True)
    weight, bias = torch.randn(4, 1, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    sides = [side for size in SIZES for side in size]
    torch.library.opcheck(module._forward, (tokens, weight, bias, sides))
    torch.library.opcheck(module._forward, (tokens, weight, None, sides))
    grad = torch.randn(2, TOKENS, 4)
    torch.library.opcheck(
        module._backward, (grad, tokens.detach(), weight.detach(), sides),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip
