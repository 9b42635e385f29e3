"""What a resumed run sees and draws, against one that was never stopped."""

import itertools
import logging
import random
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import build, build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from training_samples import load

from vitadapter.engine.data_order import IterationSeed, OrderedLoader
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.trainer import do_train


def noisy(record: dict) -> dict:
    """A record and the random numbers that an augmentation would draw."""
    drawn = (random.random(), np.random.uniform(), torch.rand(()).item())  # noqa: NPY002
    return {**record, "drawn": drawn}


def records_of(wide: list[bool]) -> list[dict]:
    sides = {True: (3, 2), False: (2, 3)}
    return [{"index": i, "width": sides[w][0], "height": sides[w][1]} for i, w in enumerate(wide)]


def sized(record: dict) -> dict:
    """As of records that do not tell the size of their image, or the wrong one."""
    return {**noisy(record), "width": 3 if record["index"] % 3 else 2, "height": 2.5}


def picky(record: dict) -> dict | None:
    """Skips an image now and then, by what an augmentation would draw."""
    mapped = noisy(record)
    is_skipped = record["index"] == 2 or (record["index"] % 2 and mapped["drawn"][0] < 0.5)
    return None if is_skipped else mapped


def loader_of(
    records: list[dict], batch_size: int, batches: int = 0, saved: object = None, **options: object
) -> OrderedLoader:
    options = {"mapper": noisy, "sampler": TrainingSampler(len(records), seed=5), **options}
    loader = build_detection_train_loader(records, total_batch_size=batch_size, **options)
    ordered = OrderedLoader(loader, seed=0)
    if batches > 0:
        ordered.restore(saved, batches)
    return ordered


def taken(loader: OrderedLoader, count: int) -> tuple[list[list[dict]], list[list[object]]]:
    """Batches, and what the checkpoint of one process has after the last of them."""
    batches = list(itertools.islice(loader, count))
    return batches, [loader.place.to_state()]


@given(
    wide=st.lists(st.booleans(), min_size=3, max_size=9),
    batch_size=st.integers(1, 3),
    stop=st.integers(1, 20),
    grouped=st.booleans(),
    mapper=st.sampled_from([noisy, sized, picky]),
)
@settings(max_examples=60, deadline=None)
def test_a_resumed_loader_goes_on(
    wide: list[bool], batch_size: int, stop: int, grouped: bool, mapper: Callable
) -> None:
    records = records_of(wide)
    options = {"aspect_ratio_grouping": grouped, "mapper": mapper}
    whole, end = taken(loader_of(records, batch_size, **options), stop + 8)
    stopped, saved = taken(loader_of(records, batch_size, **options), stop)
    assert stopped == whole[:stop]
    loader = loader_of(records, batch_size, stop, saved, **options)
    assert loader.place.to_state() == saved[0]
    assert taken(loader, 8) == (whole[stop:], end)
    drawn = [sample["drawn"] for batch in whole for sample in batch]
    assert len(set(drawn)) == len(drawn)


def test_repeated_images_go_on() -> None:
    factors = torch.tensor([1.0, 2.5, 1.2, 3.0])

    def start(*place: object) -> OrderedLoader:
        sampler = RepeatFactorTrainingSampler(factors, seed=3)
        return loader_of(records_of([True] * 4), 2, *place, sampler=sampler)

    whole, _ = taken(start(), 20)
    _, saved = taken(start(), 7)
    assert taken(start(7, saved), 13)[0] == whole[7:]


@pytest.mark.parametrize("grouped", [True, False])
def test_workers_make_no_difference(grouped: bool) -> None:
    records = records_of([index % 3 > 0 for index in range(12)])
    options = {"aspect_ratio_grouping": grouped, "mapper": picky}
    whole, end = taken(loader_of(records, 2, **options), 14)
    # Which read on, beyond what is taken.
    stopped, saved = taken(loader_of(records, 2, num_workers=2, **options), 5)
    assert stopped == whole[:5]
    for workers in (0, 3):
        loader = loader_of(records, 2, 5, saved, num_workers=workers, **options)
        assert taken(loader, 9) == (whole[5:], end)


def test_another_number_of_processes_sees_the_same_images(monkeypatch, caplog) -> None:
    def drawn(processes: int, batches: int, saved: object) -> tuple[list[set], list[list[object]]]:
        for module in (comm, build):
            monkeypatch.setattr(module, "get_world_size", lambda: processes)
        per_rank, places = [], []
        for rank in range(processes):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            options = {"sampler": TrainingSampler(7, seed=5), "aspect_ratio_grouping": False}
            loader = loader_of(records_of([True] * 7), 4, batches, saved, **options)
            given, (place,) = taken(loader, 3)
            per_rank.append(given)
            places.append(place)
        steps = zip(*per_rank, strict=True)
        return [{s["drawn"] for batch in step for s in batch} for step in steps], places

    first, places = drawn(2, 0, None)
    assert [len(step) for step in first] == [4, 4, 4]
    assert drawn(1, 0, None)[0] == drawn(4, 0, None)[0] == first
    later = drawn(2, 3, places)[0]
    assert not caplog.text
    assert drawn(1, 3, places)[0] == later
    assert "was trained by 2 processes, from here on by 1" in caplog.text


def test_loading_leaves_the_random_numbers_of_the_process_alone() -> None:
    seed_all_rng(4)
    expected = noisy({})
    seed_all_rng(4)
    taken(loader_of(records_of([True] * 5), 2), 3)
    assert noisy({}) == expected


def test_a_mapper_that_skips_everything() -> None:
    with pytest.raises(ValueError, match="the mapper skips all of the 3 images"):
        taken(loader_of(records_of([True] * 3), 1, mapper=lambda record: None), 1)


@pytest.mark.parametrize(
    "saved", [[], 3, [[-1, []]], [[3, [3]]], [[3, ["a"]]], [[3, 1]], [3], [None]]
)
def test_a_damaged_place(saved: object) -> None:
    with pytest.raises(ValueError, match=r"places? in the data must be .*, got "):
        loader_of(records_of([True] * 3), 1, 2, saved)


def test_a_checkpoint_of_an_older_version(caplog) -> None:
    records, options = records_of([True] * 5), {"aspect_ratio_grouping": False}
    whole, _ = taken(loader_of(records, 2, **options), 5)
    assert taken(loader_of(records, 2, 3, None, **options), 2)[0] == whole[3:]
    assert "does not say which images were seen" in caplog.text


def test_a_loader_of_another_kind_is_named(caplog) -> None:
    with caplog.at_level(logging.WARNING, "vitadapter"):
        loader = OrderedLoader([[{}]], seed=0)
        loader.restore(None, 0)
        assert list(loader) == [[{}]]
        assert not caplog.text
        loader.restore(None, 3)
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
