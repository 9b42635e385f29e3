"""Whether an exported file answers as the model does, on images and on a data set."""

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from detectron2.evaluation.testing import flatten_results_dict
from omegaconf import DictConfig

from vitadapter.data.image_files import read_image
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.engine.trainer import build_evaluation
from vitadapter.visualization.markdown import markdown_table

from .differences import differences_on
from .evaluation import check_fits
from .precision import precision_of, tolerance_of
from .predictor import ExportedPredictor

__all__ = ["Verdict", "Verify", "verify_on_dataset", "verify_on_images"]

# The metrics that models are compared by.
_METRICS = ("AP", "mIoU", "PQ")


@dataclass(frozen=True)
class Verdict:
    """What a comparison has found.

    Attributes:
        table: the figures, as Markdown.
        reasons: why the file does not answer as the model; none if it does.
    """

    table: str
    reasons: list[str]


Verify = Callable[[LazyPredictor, ExportedPredictor], Verdict]
"""Compares a file with the model that it was exported from."""


def verify_on_images(images: Sequence[Path]) -> Verify:
    """Compares answers for images, see `Differences`.

    Args:
        images: files.
    """

    def verify(model: LazyPredictor, exported: ExportedPredictor) -> Verdict:
        limits = tolerance_of(precision_of(exported.description.precision)).answers
        pixels = (read_image(str(path), "BGR") for path in images)
        rows = [["mean difference of", "number", "mean", "largest", "allowed mean"]]
        reasons = []
        for kind, values in differences_on(model, exported, pixels).items():
            number = str(len(values))
            if not values:
                rows.append([kind, number, "-", "-", f"{limits[kind]:g}"])
                continue
            mean = statistics.fmean(values)
            rows.append([kind, number, f"{mean:.2g}", f"{max(values):.2g}", f"{limits[kind]:g}"])
            if mean > limits[kind]:
                reasons.append(
                    f"the mean difference of {kind} on the images must be at most "
                    f"{limits[kind]:g}, got {mean:.2g}"
                )
        return Verdict(markdown_table(rows), reasons)

    return verify


def verify_on_dataset(cfg: DictConfig) -> Verify:
    """Compares AP, mIoU and PQ on the test set of a config.

    Args:
        cfg: the whole config. Its `train.output_dir` is left alone.

    Raises:
        ValueError, OSError: the data or its evaluator cannot be built.
    """
    if cfg.dataloader.get("evaluator") is None:
        raise ValueError("to verify on the test set needs dataloader.evaluator, got none")
    folder = TemporaryDirectory(prefix="vitadapter-verify-")
    cfg = copy.deepcopy(cfg)
    cfg.train.output_dir = folder.name
    evaluate = build_evaluation(cfg)

    def verify(model: LazyPredictor, exported: ExportedPredictor) -> Verdict:
        check_fits(exported.description, cfg)
        with folder:
            results = [evaluate(each) for each in (model.inference, exported.model)]
        expected, found = map(flatten_results_dict, results)
        allowed = tolerance_of(precision_of(exported.description.precision)).points
        rows, reasons = [["metric", "model", "file", "difference"]], []
        for name, value in expected.items():
            if name.rpartition("/")[2] not in _METRICS:
                continue
            rows.append([name, f"{value:.2f}", f"{found[name]:.2f}", f"{found[name] - value:+.2f}"])
            # Without an object of any class, both are NaN.
            agrees = math.isclose(found[name], value, rel_tol=0, abs_tol=allowed)
            if not agrees and not (math.isnan(value) and math.isnan(found[name])):
                reasons.append(
                    f"{name} on the test set must be that of the model within {allowed:g}, got "
                    f"{found[name]:.2f} in place of {value:.2f}"
                )
        return Verdict(markdown_table(rows), reasons)

    return verify
