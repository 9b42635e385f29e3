import pytest
import torch
from torch import nn

from vitadapter.modeling.backbone.spatial_prior import SpatialPriorModule


def test_strides_and_channels():
    maps = SpatialPriorModule(conv_dim=4, embed_dim=6, norm="BN").eval()(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, 6, 64 // stride, 96 // stride) for stride in (4, 8, 16, 32)
    ]


def test_equals_plain_convolutions_of_the_official_layout():
    torch.manual_seed(0)
    spm = SpatialPriorModule(conv_dim=4, embed_dim=6, norm="BN").eval()
    x = images = torch.randn(1, 3, 32, 64)
    for name in ("stem", "conv2", "conv3", "conv4"):
        for layer in getattr(spm, name):
            x = layer(x)
        level = {"stem": 0, "conv2": 1, "conv3": 2, "conv4": 3}[name]
        projected = getattr(spm, f"fc{level + 1}")(x)
        torch.testing.assert_close(spm(images)[level], projected, rtol=1e-4, atol=1e-5)
    convs = [m for n, m in spm.named_modules() if isinstance(m, nn.Conv2d)]
    assert [c.bias is not None for c in convs] == [False] * 6 + [True] * 4
    assert sum(isinstance(m, nn.MaxPool2d) for m in spm.modules()) == 1


@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_do_not_depend_on_the_memory_format(batch):
    """The module works channels-last; its gradients must equal those of the plain layout."""
    torch.manual_seed(0)
    spm = SpatialPriorModule(conv_dim=4, embed_dim=6, norm="BN").double()
    images = torch.randn(batch, 3, 64, 64, dtype=torch.float64)
    weights = [torch.randn_like(m) for m in spm(images)]

    def grads(maps):
        spm.zero_grad()
        sum((m * w).sum() for m, w in zip(maps, weights, strict=True)).backward()
        return [p.grad.clone() for p in spm.parameters()]

    found = grads(spm(images))
    c1 = spm.stem(images)
    c2 = spm.conv2(c1)
    c3 = spm.conv3(c2)
    expected = grads([spm.fc1(c1), spm.fc2(c2), spm.fc3(c3), spm.fc4(spm.conv4(c3))])
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
