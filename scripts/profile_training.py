#!/usr/bin/env python
"""Prints where the time of training iterations goes, by PyTorch's profiler.

Trains for a few iterations in a temporary folder and evaluates at the end, all in one process
without workers, so that reading images is seen too. On a GPU each part waits for its kernels. The
first iterations, which warm up, count like the others.

Example: scripts/profile_training.py COCO/mask_rcnn_vit_adapter_t_deit_1x --iterations 10 \\
    --overrides dataset.root=my_data dataloader.train.total_batch_size=2
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from vitadapter.data import dataset_mapper, image_files
from vitadapter.engine import trainer
from vitadapter.engine.overrides import load_config
from vitadapter.engine.run_checks import setup_errors
from vitadapter.engine.train_loop import AccumulatingTrainer
from vitadapter.model_zoo import config_file

_PREFIX = "vitadapter: "
EVALUATION = "evaluation"
# What is called in a part. A part that is called in another one counts by itself.
PARTS: tuple[tuple[object, str, str], ...] = (
    (image_files, "read_image", "decoding"),
    (dataset_mapper, "augment", "resizing and other augmentations"),
    (dataset_mapper.RecordMapper, "__call__", "annotations and masks"),
    (AccumulatingTrainer, "_next_batch", "joining batches"),
    (AccumulatingTrainer, "_forward", "forward pass"),
    (torch.Tensor, "backward", "backward pass"),
    (torch.amp.GradScaler, "step", "optimizer"),
    (AccumulatingTrainer, "run_step", "checks of losses and gradients"),
    (AccumulatingTrainer, "after_step", "logging, checkpoints and other hooks"),
    (trainer, "inference_on_dataset", EVALUATION),
)
COPIES = "copies of tensors, within the above"


def _labelled(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: object, **options: object) -> object:
        with record_function(f"{_PREFIX}{label}"):
            result = function(*args, **options)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return result

    return call


@contextmanager
def labelled_parts() -> Iterator[None]:
    """Until it is left, the profiler sees `PARTS` by their names."""
    with ExitStack() as stack:
        for owner, name, label in PARTS:
            labelled = _labelled(getattr(owner, name), label)
            stack.enter_context(mock.patch.object(owner, name, labelled))
        yield


def _above(event: Any) -> list[Any]:
    above = []
    while event.cpu_parent is not None:
        event = event.cpu_parent
        if event.name.startswith(_PREFIX):
            above.append(event)
    return above


def seconds_by_part(profiler: profile) -> Counter[str]:
    """The time of each part without that of other parts; all of an evaluation is its own."""
    seconds: Counter[str] = Counter()
    for event in profiler.events():
        above = _above(event)
        if any(part.name == f"{_PREFIX}{EVALUATION}" for part in above):
            continue
        if event.name == "aten::_to_copy":
            seconds[COPIES] += event.cpu_time_total / 1e6
        if not event.name.startswith(_PREFIX):
            continue
        seconds[event.name.removeprefix(_PREFIX)] += event.cpu_time_total / 1e6
        if above:
            seconds[above[0].name.removeprefix(_PREFIX)] -= event.cpu_time_total / 1e6
    return seconds


def profiled(config: str, overrides: Sequence[str], iterations: int) -> Counter[str]:
    """Trains and evaluates, and returns the seconds of each part.

    Args:
        config: name of an experiment, or its file.
        overrides: of the config.
        iterations: of training.

    Raises:
        ValueError: the config or its data cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder, setup_errors():
        own = [f"train.output_dir={folder}", f"train.max_iter={iterations}"]
        own += [f"dataloader.{part}.num_workers=0" for part in ("train", "test")]
        cfg = load_config(str(config_file(config)), [*overrides, *own])
        activities = [ProfilerActivity.CPU]
        with labelled_parts(), profile(activities=activities) as profiler:
            trainer.do_train(cfg)
        return seconds_by_part(profiler)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="name of an experiment, or its file")
    parser.add_argument("--iterations", type=int, default=10, help="of training (default: 10)")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="key=value")
    args = parser.parse_args(arguments)
    if args.iterations < 1:
        parser.error(f"--iterations must be at least 1, got {args.iterations}")
    try:
        seconds = profiled(args.config, args.overrides, args.iterations)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    copies, evaluation = seconds.pop(COPIES, 0.0), seconds.pop(EVALUATION, 0.0)
    total = sum(seconds.values())
    print(f"{args.iterations} iterations, {1000 * total / args.iterations:.1f} ms each:")
    for name, value in [*seconds.most_common(), (COPIES, copies)]:
        print(f"{100 * value / total:5.1f} %  {1000 * value / args.iterations:8.1f} ms  {name}")
    print(f"one evaluation: {evaluation:.2f} s")


if __name__ == "__main__":
    main()
