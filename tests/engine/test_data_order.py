"""What a resumed run sees and draws, against one that was never stopped."""

import itertools
import logging
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from training_samples import load

from vitadapter.engine.data_order import IterationSeed, continue_data
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.trainer import do_train


def identity(record: dict) -> dict:
    return record


def noisy(record: dict) -> dict:
    """A record and the random numbers that an augmentation would draw."""
    drawn = (random.random(), np.random.uniform(), torch.rand(()).item())  # noqa: NPY002
    return {**record, "drawn": drawn}


def records_of(wide: list[bool]) -> list[dict]:
    sides = {True: (3, 2), False: (2, 3)}
    return [{"index": i, "width": sides[w][0], "height": sides[w][1]} for i, w in enumerate(wide)]


def loader_of(records: list[dict], batch_size: int, **options: object) -> object:
    options = {"mapper": identity, "sampler": TrainingSampler(len(records), seed=5), **options}
    return build_detection_train_loader(records, total_batch_size=batch_size, **options)


def batches_of(loader: object, count: int) -> list[list[int]]:
    return [[s["index"] for s in batch] for batch in itertools.islice(loader, count)]


@given(
    wide=st.lists(st.booleans(), min_size=2, max_size=9),
    batch_size=st.integers(1, 3),
    stop=st.integers(1, 20),
    grouped=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_resumed_loader_goes_on(
    wide: list[bool], batch_size: int, stop: int, grouped: bool
) -> None:
    records, options = records_of(wide), {"aspect_ratio_grouping": grouped}
    whole = batches_of(loader_of(records, batch_size, **options), stop + 8)
    loader = loader_of(records, batch_size, **options)
    continue_data(loader, stop, seed=0)
    assert batches_of(loader, 8) == whole[stop:]


def test_repeated_images_go_on() -> None:
    factors = torch.tensor([1.0, 2.5, 1.2, 3.0])

    def build() -> object:
        sampler = RepeatFactorTrainingSampler(factors, seed=3)
        return loader_of(records_of([True] * 4), 2, sampler=sampler)

    whole = batches_of(build(), 20)
    loader = build()
    continue_data(loader, 7, seed=0)
    assert batches_of(loader, 13) == whole[7:]


def test_workers_go_on_with_other_random_numbers() -> None:
    records = records_of([True] * 12)

    def start(batches: int) -> list[list[dict]]:
        loader = loader_of(records, 2, mapper=noisy, num_workers=2, aspect_ratio_grouping=False)
        continue_data(loader, batches, seed=0)
        return list(itertools.islice(loader, 4))

    first, again, later = start(0), start(0), start(2)
    assert first == again
    assert [[s["index"] for s in b] for b in first[2:]] == [
        [s["index"] for s in b] for b in later[:2]
    ]
    drawn = [value for batch in first + later for s in batch for value in s["drawn"]]
    assert max(Counter(drawn).values()) == 1


def test_a_loader_of_another_kind_is_named(caplog) -> None:
    with caplog.at_level(logging.WARNING, "vitadapter"):
        continue_data([[{}]], 0, seed=0)
        assert not caplog.text
        continue_data([[{}]], 3, seed=0)
    assert "the data start from the beginning: list is not a loader" in caplog.text
    assert "first 3 batches" in caplog.text


def test_each_iteration_draws_its_own_numbers() -> None:
    def drawn(iteration: int, seed: int = 0) -> tuple[float, float, float]:
        hook = IterationSeed(seed)
        hook.trainer = SimpleNamespace(iter=iteration)
        hook.before_step()
        return noisy({})["drawn"]

    assert drawn(3) == drawn(3)
    assert len({drawn(0), drawn(3), drawn(4), drawn(3, seed=1)}) == 4


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_resumed_run_equals_one_never_stopped(cfg: DictConfig, accumulate_steps: int) -> None:
    apply_overrides(
        cfg,
        [
            f"train.accumulate_steps={accumulate_steps}",
            "train.ema.enabled=True",
            "train.max_iter=5",
            "train.checkpointer.period=1",
            "dataloader.evaluator=null",
            # What random numbers of an iteration decide.
            "model.roi_heads.batch_size_per_image=4",
            "model.proposal_generator.batch_size_per_image=8",
        ],
    )
    do_train(cfg)
    whole = load(cfg, "model_final.pth")
    cfg.train.output_dir += "_stopped"
    for stop in (1, 3, 5):
        # The schedule of the whole run.
        stopped = cfg.copy()
        stopped.lr_multiplier.end_value = 1.0 - 0.9 * stop / 5
        stopped.train.max_iter = stop
        do_train(stopped, resume=True)
    resumed = load(cfg, "model_final.pth")
    for key in ("model", "model_ema"):
        assert whole[key].keys() == resumed[key].keys()
        for name, value in whole[key].items():
            assert torch.equal(resumed[key][name], value), (key, name)
    states = [run["trainer"]["optimizer"]["state"] for run in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        assert all(torch.equal(states[1][index][name], value) for name, value in state.items())
