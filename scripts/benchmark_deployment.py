#!/usr/bin/env python
"""Compares how fast a trained model is in PyTorch and as exported files, and what it finds.

For each model and number of threads, one image is predicted by the model itself and by an exported
file of each format and precision, in turns: from the resized image to the answer, with masks at the
size of the image. --compile adds the model with a compiled backbone. Times are medians. With
--evaluate, AP or mIoU on the test set of the config is beside. Times are CPU seconds with one
thread, which other processes disturb least, and wall seconds with more.

Example: %(prog)s --run "Mask R-CNN, T" output/config.yaml output/model_final.pth \\
    --calibrate datasets/digits/train --evaluate --threads 1 2 --json deployment.json
"""

import argparse
import json
import logging
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.evaluation.testing import flatten_results_dict
from omegaconf import DictConfig
from torch import nn

from benchmarks.interleaved import interleave
from vitadapter.data.image_files import image_paths, read_image
from vitadapter.engine.overrides import load_config
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.engine.trainer import build_evaluation
from vitadapter.export import export
from vitadapter.export.formats import FORMATS
from vitadapter.export.model import ExportedModel
from vitadapter.export.precision import PRECISIONS, name_of
from vitadapter.known_warnings import without_known_warnings
from vitadapter.visualization.markdown import markdown_table

BASELINE = "PyTorch fp32"
COMPILED = "torch.compile fp32"
METRICS = ("AP", "mIoU", "PQ")


@dataclass
class Contender:
    """A way to run a model.

    Attributes:
        load: returns the model for the number of threads that PyTorch has.
        megabytes: of its file; None without one.
        metrics: on the test set.
        seconds: by number of threads.
    """

    load: Callable[[], nn.Module]
    megabytes: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)


def compiled(cfg: DictConfig, weights: str) -> nn.Module:
    """A model whose backbone is compiled for any size."""
    predictor = LazyPredictor(cfg.copy(), weights, device="cpu")
    predictor.model.backbone.compile(dynamic=True)
    return predictor.inference


def contenders_of(
    predictor: LazyPredictor,
    cfg: DictConfig,
    weights: str,
    args: argparse.Namespace,
    folder: Path,
) -> dict[str, Contender]:
    """Exports the model to each format and precision that is asked for."""
    found = {BASELINE: Contender(lambda: predictor.inference)}
    if args.compile:
        found[COMPILED] = Contender(partial(compiled, cfg, weights))
    calibration = image_paths([args.calibrate])[: args.calibration_images] if args.calibrate else []
    for name, format_ in FORMATS.items():
        for precision in format_.precisions:
            is_int8 = precision == torch.int8
            if name not in args.formats or name_of(precision) not in args.precisions:
                continue
            if is_int8 and not calibration:
                continue
            file = folder / f"{name}-{name_of(precision)}{format_.suffix}"
            # A table of what precisions cost has those that cost too much as well.
            export(
                predictor,
                name,
                file,
                precision=precision,
                calibration=calibration if is_int8 else (),
                force=precision != torch.float32,
            )
            files = [file.with_suffix(suffix) for suffix in (file.suffix, *format_.companions)]
            size = sum(each.stat().st_size for each in files if each.exists()) / 1e6
            title = f"{name} {name_of(precision)}"
            found[title] = Contender(partial(ExportedModel, file), size)
            print(f"  {title}: {size:.1f} MB", flush=True)
    return found


def predict(model: nn.Module, record: Mapping[str, object]) -> None:
    """Predicts an image."""
    with torch.no_grad():
        model([record])


def measure(
    contenders: dict[str, Contender], predictor: LazyPredictor, args: argparse.Namespace
) -> None:
    """Times all contenders in turns, for each number of threads."""
    image = np.random.default_rng(0).integers(0, 256, (args.size, args.size, 3), np.uint8)
    if args.image is not None:
        image = read_image(args.image, "BGR")
    record = predictor.preprocess(image) if args.image else as_record(image)
    for threads in args.threads:
        torch.set_num_threads(threads)
        calls = {
            name: partial(predict, contender.load(), record)
            for name, contender in contenders.items()
        }
        clock = "cpu" if threads == 1 else "wall"
        for name, turns in interleave(calls, args.rounds, "cpu", args.seconds).items():
            taken = statistics.median(getattr(turn, clock) for turn in turns)
            contenders[name].seconds[threads] = taken


def as_record(image: np.ndarray) -> dict[str, object]:
    """An image that is not resized."""
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    return {"image": pixels, "height": height, "width": width}


def evaluate(contenders: dict[str, Contender], cfg: DictConfig) -> None:
    """Evaluates all contenders but the compiled one on the test set."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        cfg = cfg.copy()
        cfg.train.output_dir = folder
        run = build_evaluation(cfg)
        for name, contender in contenders.items():
            if name == COMPILED:
                continue
            results = flatten_results_dict(run(contender.load()))
            contender.metrics = {
                key: value for key, value in results.items() if key.split("/")[-1] in METRICS
            }


def table(contenders: dict[str, Contender], threads: list[int]) -> str:
    """The figures as Markdown."""
    first = contenders[BASELINE]
    heads = [f"{n} thread{'s' * (n > 1)}" for n in threads]
    rows = [["", *heads, *first.metrics, "MB"]]
    for name, contender in contenders.items():
        cells = [
            f"{1e3 * contender.seconds[n]:.0f} ms ({first.seconds[n] / contender.seconds[n]:.2f}x)"
            for n in threads
        ]
        for key in first.metrics:
            value = contender.metrics.get(key)
            cells.append("-" if value is None else f"{value:.2f}")
        size = contender.megabytes
        rows.append([name, *cells, "-" if size is None else f"{size:.1f}"])
    return markdown_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "CONFIG", "WEIGHTS"),
        help="a model; WEIGHTS may be '' for random ones; may be repeated",
    )
    runnable = [name for name in FORMATS if name != "tensorrt"]
    parser.add_argument("--formats", nargs="+", choices=runnable, default=runnable)
    parser.add_argument(
        "--precisions", nargs="+", choices=list(PRECISIONS), default=["fp32", "bf16", "int8"]
    )
    parser.add_argument(
        "--compile", action="store_true", help="also measure the model under torch.compile"
    )
    parser.add_argument("--calibrate", metavar="FOLDER", help="images; without them, no int8")
    parser.add_argument("--calibration-images", type=int, default=64, help="at most (default: 64)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--size", type=int, default=512, help="side of the noise that is predicted")
    parser.add_argument("--image", help="an image in place of noise, resized as in tests")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians over")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn")
    parser.add_argument("--evaluate", action="store_true", help="on the config's test set")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    least = min(*args.threads, args.size, args.rounds, args.calibration_images)
    if least < 1:
        parser.error(f"threads, size, rounds and images must be at least 1, got {least}")
    logging.disable(logging.INFO)
    with without_known_warnings():
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Prints a table for each model."""
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}")
    results = {}
    for title, config, weights in args.run:
        print(f"\n{title}", flush=True)
        cfg = load_config(config)
        predictor = LazyPredictor(cfg.copy(), weights, device="cpu")
        with TemporaryDirectory() as folder:
            torch.set_num_threads(1)
            found = contenders_of(predictor, cfg, weights, args, Path(folder))
            if args.evaluate:
                evaluate(found, cfg)
            measure(found, predictor, args)
        print(table(found, args.threads), flush=True)
        results[title] = {
            name: {"seconds": each.seconds, "metrics": each.metrics, "megabytes": each.megabytes}
            for name, each in found.items()
        }
        if args.json is not None:
            args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
