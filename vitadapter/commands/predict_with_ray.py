"""Predictions by actors of Ray, on this machine or a cluster; see `scripts/predict_with_ray.py`.

Ray Data hands the inputs to the actors, each of which has loaded the model as `vitadapter predict`
does and writes the same files.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from vitadapter.commands.predict import (
    Run,
    begin,
    finish,
    number_of_images,
    parse,
    predict_parser,
    prepare,
    run,
)
from vitadapter.commands.prediction_inputs import Planned, names_a_file
from vitadapter.commands.prediction_ranks import Progress
from vitadapter.engine.run_checks import setup_errors

__all__ = ["main"]

_DESCRIPTION = """\
Predicts with the options of `vitadapter predict`, and writes the same files, by actors of Ray: on
the cluster that RAY_ADDRESS names, or else on this machine. All machines of a cluster need the
inputs, the weights and the output folder under the same paths.
It needs Ray: pip install 'vitadapter[ray]'
"""
_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x photos/ --json --no-pictures --actors 4
  RAY_ADDRESS=auto %(prog)s output/model_final.pth all.txt --actors 16 --batch-size 8
"""
_BATCHES = 4  # that an actor gets at once, so that it finds images of equal size among them


class Actor:
    """Predicts inputs by their numbers.

    Args:
        args: of the command line.
        planned: all inputs.
        folder: that relative paths are relative to. Ray starts actors in one of its own.
    """

    def __init__(self, args: argparse.Namespace, planned: Sequence[Planned], folder: Path) -> None:
        os.chdir(folder)
        model, selection, _ = prepare(args)
        output = Path(args.output)
        self._run = Run(model.predictor(), selection, output, args.batch_size, args.workers)
        self._planned = planned

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
        """
        Args:
            batch: "number" of each input.

        Returns:
            The numbers of images that are done, and of inputs that failed.
        """
        mine = [self._planned[number] for number in batch["number"]]
        failed = self._run.all(mine, Progress(0, is_shown=False))
        return {"images": [number_of_images(mine)], "failed": [failed]}


def _with_actors(args: argparse.Namespace, planned: list[Planned]) -> tuple[int, int]:
    """As `predict_in_processes` does."""
    # Ray is a package that few need, and takes seconds to import.
    import ray.data

    if names_a_file(Path(args.output)):
        raise ValueError(f"--output must be a folder, got {args.output}")
    with setup_errors():
        _, _, settings = prepare(args)
    since, todo = begin(args, planned, settings)
    failed = 0
    if todo:
        # The numbers are in the store from the start: to read them would take a CPU that the actors
        # may have taken already.
        numbers = ray.data.from_items([{"number": number} for number in range(len(todo))])
        done = numbers.map_batches(
            Actor,
            fn_constructor_args=(args, todo, Path.cwd()),
            batch_size=_BATCHES * args.batch_size,
            compute=ray.data.ActorPoolStrategy(size=args.actors),
            num_cpus=args.cpus_per_actor,
            num_gpus=args.gpus_per_actor,
        )
        with Progress(number_of_images(todo), is_shown=True) as progress:
            for row in done.iter_rows():
                failed += row["failed"]
                progress.update(row["images"])
    finish(args, planned, since)
    return len(todo), failed


def main(arguments: Sequence[str], prog: str = "scripts/predict_with_ray.py") -> int:
    """Predicts by actors of Ray.

    Args:
        arguments: of the command line.
        prog: name of the command in messages.

    Returns:
        The exit status, as of `vitadapter predict`.
    """
    parser = predict_parser(prog, _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "--actors", type=int, default=1, metavar="N", help="so many load the model (default: 1)"
    )
    parser.add_argument(
        "--cpus-per-actor", type=int, default=1, metavar="N", help="CPUs of each (default: 1)"
    )
    parser.add_argument(
        "--gpus-per-actor",
        type=float,
        metavar="N",
        help="GPUs of each, or the part of one (default: 1 if this machine has a GPU)",
    )
    args = parse(parser, arguments)
    if args.gpus_per_actor is None:
        args.gpus_per_actor = float(torch.cuda.is_available())
    for option in ("actors", "cpus_per_actor"):
        if getattr(args, option) < 1:
            name = option.replace("_", "-")
            parser.error(f"--{name} must be at least 1, got {getattr(args, option)}")
    if args.gpus_per_actor < 0:
        parser.error(f"--gpus-per-actor must not be negative, got {args.gpus_per_actor}")
    if find_spec("ray") is None:
        print("error: it needs Ray: pip install 'vitadapter[ray]'", file=sys.stderr)
        return 2
    return run(args, _with_actors)
