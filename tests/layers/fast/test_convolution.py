import pytest
import torch
from torch import nn

from vitadapter.layers.fast import PointwiseConv2d, UpsampleConv2d

PAIRS = [
    (lambda: PointwiseConv2d(5, 7), lambda: nn.Conv2d(5, 7, 1)),
    (lambda: UpsampleConv2d(5, 7), lambda: nn.ConvTranspose2d(5, 7, 2, stride=2)),
]


@pytest.mark.parametrize(("make_ours", "make_plain"), PAIRS)
@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (1, 5, 3, 1), (1, 5, 1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_pytorch(make_ours, make_plain, shape, memory_format):
    torch.manual_seed(0)
    results = []
    plain = make_plain().double()
    ours = make_ours().double()
    ours.load_state_dict(plain.state_dict())
    images = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format)
    weights = torch.randn_like(plain(images))
    for layer in (ours, plain):
        x = images.clone().requires_grad_()
        output = layer(x)
        (output * weights).sum().backward()
        results.append((output, x.grad, layer.weight.grad, layer.bias.grad))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("make_ours", "_"), PAIRS)
def test_the_output_is_channels_last(make_ours, _):
    output = make_ours()(torch.randn(2, 5, 4, 6))
    assert output.is_contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(7)
    norm(make_ours()(torch.randn(1, 5, 4, 6))).sum().backward()


def test_upsampling_refuses_another_size():
    with pytest.raises(ValueError, match=r"twice the size.*\[9, 9\]"):
        UpsampleConv2d(5, 7)(torch.randn(1, 5, 4, 4), [9, 9])
