"""Code that looks at data, on fake tensors."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torchvision.ops import nms

from vitadapter.analysis.fake_run import fake_run

_BOXES = [[0.0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60]]


def _match(boxes: Tensor, scores: Tensor) -> tuple[int, list[int], np.ndarray]:
    kept = boxes[nms(boxes, scores, 0.5)]
    large = (kept[:, 2:] > 20).all(1)
    return len(kept), large.nonzero().flatten().tolist(), kept[large].numpy()


def test_what_follows_from_known_data_is_as_on_real_tensors() -> None:
    real = _match(torch.tensor(_BOXES), torch.tensor([0.1, 0.9, 0.5]))
    with fake_run():
        boxes = torch.tensor(_BOXES)
        assert isinstance(boxes * 1, FakeTensor)
        count, places, array = _match(boxes, torch.tensor([0.1, 0.9, 0.5]))
    assert (count, places) == real[:2] == (2, [1])
    np.testing.assert_array_equal(array, real[2])


def test_predictions_get_values_where_they_decide_something() -> None:
    with fake_run():
        features = nn.Conv2d(3, 8, 3)(torch.zeros(1, 3, 34, 34))
        assert not hasattr(features, "known_values")
        scores = features.flatten()
        best, places = scores.topk(100)
        assert places.unique().numel() == 100
        positive = (scores > 0).sum().item()
        assert 0.4 < positive / scores.numel() < 0.6
        assert bool((best > 0).all())
        assert scores.isfinite().all()


def test_copied_models_are_fake_too() -> None:
    with fake_run():
        layer = nn.Linear(2, 3)
        layer.register_buffer("sizes", torch.tensor([32, 64]))
        twin = copy.deepcopy(nn.ModuleList([layer, layer]))
        assert twin[0] is twin[1]
        assert isinstance(twin[0].sizes, FakeTensor)
        assert twin[0].sizes is not layer.sizes
        assert twin[0].sizes.tolist() == [32, 64]
        assert twin[0].weight.requires_grad
        assert not twin[0].sizes.requires_grad


def test_large_tensors_have_no_data() -> None:
    with fake_run():
        large = torch.zeros(2**40)  # 4 TiB
        assert (large + large).sum().shape == ()


def test_values_survive_the_backward_pass() -> None:
    with fake_run():
        weight = torch.empty(5, 3, requires_grad=True)
        rows = weight[torch.tensor([True, False, True, False, False])]
        rows.sum().backward()
        assert rows.shape == (2, 3)
        assert weight.grad is not None
        assert weight.grad.shape == (5, 3)


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with fake_run():
        torch.randperm(5).tolist()
    assert torch.equal(torch.rand(3), expected)


def test_an_operator_that_needs_data_is_named() -> None:
    library = torch.library.Library("analysis_test", "FRAGMENT")
    library.define("opaque(Tensor x) -> Tensor")
    library.impl("opaque", lambda x: x, "CPU")
    with pytest.raises(ValueError, match=r"cannot be run on fake tensors.*opaque"), fake_run():
        torch.ops.analysis_test.opaque(torch.empty(3))
