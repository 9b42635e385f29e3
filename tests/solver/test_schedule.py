from collections.abc import Callable

import pytest
import torch
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
)

from vitadapter.solver import PerEpoch, warm_up

STEPS = MultiStepParamScheduler(values=[1.0, 0.1, 0.01], milestones=[8, 11], num_updates=12)


def _rates(build: Callable[[Optimizer], LRScheduler], max_iter: int) -> list[float]:
    """Learning rate of each iteration of a training with base learning rate 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build(optimizer)
    rates = []
    for _ in range(max_iter):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def _torchs(optimizer: Optimizer) -> LRScheduler:
    warmup = LinearLR(optimizer, start_factor=0.001, total_iters=10)
    steps = MultiStepLR(optimizer, milestones=[80, 110], gamma=0.1)
    return ChainedScheduler([warmup, steps])


def test_equals_torchs_schedulers() -> None:
    multiplier = warm_up(STEPS, max_iter=120, warmup_iters=10, warmup_factor=0.001)
    ours = _rates(lambda optimizer: LRMultiplier(optimizer, multiplier, max_iter=120), 120)
    theirs = _rates(_torchs, 120)
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("max_iter", [1000, 87960, 263880])
def test_the_warm_up_is_counted_in_iterations(max_iter: int) -> None:
    multiplier = warm_up(STEPS, max_iter=max_iter, warmup_iters=500, warmup_factor=0.001)
    for iteration in (0, 1, 250, 499, 500):
        # the official recipes' formula
        expected = 1 - (1 - 0.001) * (1 - iteration / 500)
        assert multiplier(iteration / max_iter) == pytest.approx(expected)


def test_the_warm_up_ends_where_the_schedule_is_by_then() -> None:
    decay = LinearParamScheduler(start_value=1.0, end_value=0.0)
    multiplier = warm_up(decay, max_iter=100, warmup_iters=50, warmup_factor=0.1)
    assert multiplier(0.0) == pytest.approx(0.1)
    assert multiplier(0.25) == pytest.approx((0.1 + 0.5) / 2)
    assert multiplier(0.5) == pytest.approx(0.5)
    assert multiplier(0.75) == pytest.approx(0.25)


def test_no_warm_up() -> None:
    multiplier = warm_up(STEPS, max_iter=12, warmup_iters=0, warmup_factor=0.001)
    assert [multiplier(i / 12) for i in range(12)] == [STEPS(i / 12) for i in range(12)]


@pytest.mark.parametrize(("warmup_iters", "max_iter"), [(500, 500), (500, 100), (-1, 100)])
def test_a_warm_up_that_does_not_fit_is_refused(warmup_iters: int, max_iter: int) -> None:
    message = f"override lr_multiplier.warmup_iters or train.max_iter.*{warmup_iters=}, {max_iter=}"
    with pytest.raises(ValueError, match=message):
        warm_up(STEPS, max_iter=max_iter, warmup_iters=warmup_iters, warmup_factor=0.001)


def test_equals_torchs_cosine_by_epoch() -> None:
    def by_epoch(optimizer: Optimizer) -> LRScheduler:
        return CosineAnnealingLR(optimizer, T_max=7, eta_min=0.01)

    held = PerEpoch(CosineParamScheduler(start_value=1.0, end_value=0.01), epochs=7)
    ours = _rates(lambda optimizer: LRMultiplier(optimizer, held, max_iter=7 * 13), 7 * 13)
    theirs = [rate for rate in _rates(by_epoch, 7) for _ in range(13)]
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("epochs", [25, 36, 50])
def test_no_iteration_is_counted_to_another_epoch(epochs: int) -> None:
    held = PerEpoch(LinearParamScheduler(start_value=0.0, end_value=float(epochs)), epochs=epochs)
    for epoch in range(epochs):
        for iteration in (epoch * 7330, epoch * 7330 + 7329):
            assert held(iteration / (epochs * 7330)) == pytest.approx(epoch)


def test_no_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        PerEpoch(STEPS, epochs=0)
