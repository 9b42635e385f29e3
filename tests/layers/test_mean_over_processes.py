import pytest
import torch
from torch import Tensor

from vitadapter.layers import mean_over_processes as module
from vitadapter.layers.mean_over_processes import mean_over_processes


def test_alone_it_is_the_number_without_gradient() -> None:
    number = torch.tensor(3.0, requires_grad=True)
    mean = mean_over_processes(number)
    assert mean.item() == 3.0
    assert not mean.requires_grad


def test_mean_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three others have 5, 6 and 0."""

    def add_others(number: Tensor) -> None:
        number += 11

    monkeypatch.setattr(module.comm, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", add_others)
    own = torch.tensor(1.0)
    assert mean_over_processes(own).item() == 3.0
    assert own.item() == 1.0
