"""Reads a run's folder: its config, its metrics over time, and what its evaluation wrote."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf

from vitadapter.data.dataset_source import first_few
from vitadapter.data.image_files import reason
from vitadapter.engine.checkpoint import LAST_NAME
from vitadapter.engine.overrides import load_config
from vitadapter.engine.run_log import CONFIG_NAME
from vitadapter.visualization.metrics_file import RunMetrics, read_metrics

__all__ = [
    "Json",
    "Run",
    "check_reproduced",
    "curves",
    "note_renamed",
    "note_unread",
    "open_run",
    "plain",
    "read_each",
    "reading_results",
    "summary",
]

Json = dict[str, object]
_T = TypeVar("_T")

_MOST_POINTS = 1000  # of a curve; more are not seen


def plain(values: np.ndarray | Sequence[float], digits: int) -> list[float | int | None]:
    """Numbers as JSON has them: rounded, and None for those that are not finite."""
    rounded = np.round(np.asarray(values, dtype=float), digits)
    whole = rounded.astype(int) if digits == 0 and np.isfinite(rounded).all() else rounded
    return [x if np.isfinite(x) else None for x in whole.tolist()]


@dataclass(frozen=True)
class Run:
    """A run's output folder.

    Attributes:
        folder: of the run.
        cfg: its whole config, with overrides.
        notes: what the reader of the report must know; filled as the run is read.
    """

    folder: Path
    cfg: DictConfig
    notes: list[str] = field(default_factory=list)

    @property
    def results(self) -> Path:
        """The folder that the evaluation writes to; it moves with the run if it is inside."""
        given = Path(str(self.cfg.dataloader.evaluator.output_dir))
        trained = Path(str(self.cfg.train.output_dir))
        return self.folder / given.relative_to(trained) if given.is_relative_to(trained) else given

    def result(self, name: str) -> Path:
        """A file that the evaluation writes.

        Raises:
            ValueError: it does not exist; the message says what to run.
        """
        path = self.results / name
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist: the run has not been evaluated. Run `vitadapter eval "
                f"{self.folder}/model_final.pth train.output_dir={self.folder}` first (or wait for "
                "the end of its training)"
            )
        return path

    def config_text(self) -> str | None:
        """`config.yaml`, if there is one."""
        path = self.folder / CONFIG_NAME
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def arguments(self) -> Json:
        """The arguments of the evaluator."""
        arguments = cast(Json, OmegaConf.to_container(self.cfg.dataloader.evaluator, resolve=True))
        return {name: value for name, value in arguments.items() if name != "_target_"}

    def metrics(self) -> RunMetrics | None:
        """The metrics over time; None if there are none, with a note if there should be some."""
        try:
            return read_metrics(self.folder)
        except (OSError, ValueError) as error:
            if (self.folder / LAST_NAME).is_file():  # not only evaluated
                self.notes.append(f"There are no curves of training: {error}")
            return None


def _thinned(curve: tuple[np.ndarray, np.ndarray]) -> Json:
    x, y = curve
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).astype(int))
    y = y[chosen]
    # Six digits that count, since learning rates are small.
    values = [float(f"{v:.6g}") if np.isfinite(v) else None for v in y.tolist()]
    return {"x": x[chosen].tolist(), "y": values}


def curves(metrics: RunMetrics) -> Json:
    """Losses, learning rate and metrics of the evaluations over the iterations, for the page."""
    names = metrics.names()
    # Of models with many losses, those of layers and stages come last.
    losses = sorted((n for n in names if n.startswith("loss_")), key=lambda n: (n[-1].isdigit(), n))
    losses.insert(0, "total_loss")
    headlines = [f"{task}/{metric}" for task, all_ in _HEADLINES.items() for metric in all_]
    evaluated = [n for n in headlines if n in names]
    return {
        "losses": {name: _thinned(metrics.curve(name)) for name in losses},
        "rate": _thinned(metrics.curve("lr")),
        "metrics": {name: _thinned(metrics.curve(name)) for name in evaluated},
    }


# Metrics of all classes; those of single classes are in the table.
_HEADLINES = {
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "sem_seg": ("mIoU", "fwIoU", "mACC", "pACC", "mBoundaryIoU"),
    "panoptic_seg": ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"),
}


def _is_headline(name: str) -> bool:
    task, _, metric = name.partition("/")
    return metric in _HEADLINES.get(task, ())


def check_reproduced(run: Run, metrics: RunMetrics | None, name: str, value: float) -> None:
    """Notes it if a figure of the files is not the one that the evaluation logged.

    Args:
        run: whose notes are added to.
        metrics: of the run.
        name: of the metric, such as "bbox/AP".
        value: in percent, computed of the files as they are now.
    """
    logged = None if metrics is None else metrics.last(name)
    if logged is not None and np.isfinite(value) and abs(logged - value) > 0.05:
        run.notes.append(
            f"{name} is {value:.2f} now, but the evaluation logged {logged:.2f}: annotations or "
            "results have changed since (this page has what the files say now)"
        )


def note_renamed(run: Run, before: Sequence[str], names: Sequence[str]) -> None:
    """Notes it if classes are not called what they were at the evaluation.

    Args:
        run: whose notes are added to.
        before: the names that the evaluation wrote.
        names: the names now.
    """
    if len(before) != len(names):
        run.notes.append(
            f"The evaluation had {len(before)} classes, but there are {len(names)} now"
        )
        return
    changed = [f"{a} → {b}" for a, b in zip(before, names, strict=True) if a != b]
    if changed:
        run.notes.append(
            f"{len(changed)} classes have been renamed since the evaluation (old → new: "
            f"{first_few(changed, 8)}). This page has the new names"
        )


def summary(
    run: Run, metrics: RunMetrics | None, results: Path, images: int
) -> list[tuple[str, str]]:
    """What the run is: pairs of a name and a text."""
    train = run.cfg.train
    last = run.folder / LAST_NAME
    weights = "weights at the start" if last.is_file() else "weights"
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(results.stat().st_mtime))
    data = run.cfg.dataloader.evaluator.get("name")
    rows = [
        ("run", str(run.folder.resolve())),
        (weights, str(train.init_checkpoint or "random")),
        ("evaluated", f"{written}, on {images} {'image' if images == 1 else 'images'} of {data}"),
    ]
    if last.is_file():
        rows.append(("last checkpoint", last.read_text(encoding="utf-8").strip()))
    if metrics is None:
        return rows
    iterations = metrics.iterations()
    rows.append(("trained", f"{iterations} of {train.max_iter} iterations"))
    try:
        minutes = float(metrics.minutes()[-1])
        rows.append(("training time", f"{minutes:.1f} min without evaluation"))
    except ValueError:  # only a few iterations, none of which was timed
        pass
    evaluated = [i for i, row in metrics.rows.items() if any(_is_headline(n) for n in row)]
    if evaluated and evaluated[-1] < iterations - 1:
        run.notes.append(
            f"The evaluation is of iteration {evaluated[-1]}, but training went on to {iterations}"
        )
    elif not evaluated:
        run.notes.append("The evaluation has not been logged: the run may still be writing")
    return rows


def open_run(
    folder: str | Path, overrides: Sequence[str] = (), cfg: DictConfig | None = None
) -> Run:
    """Opens the output folder of a run.

    Args:
        folder: of `vitadapter train` or `vitadapter eval`.
        overrides: of its config, such as `dataset.test.image_root=...` for data that has moved.
        cfg: its config, if it is at hand; None reads `config.yaml`.

    Raises:
        ValueError: it is no such folder, or its config cannot be used.
    """
    path = Path(folder).expanduser()
    if cfg is not None:
        return Run(path, cfg)
    config = path / CONFIG_NAME
    if not config.is_file():
        raise ValueError(
            f"{path} must be the output folder of `vitadapter train` or `vitadapter eval`, but it "
            "has no config.yaml" + ("" if path.is_dir() else " (there is no such folder)")
        )
    return Run(path, load_config(str(config), overrides))


@contextlib.contextmanager
def reading_results() -> Iterator[None]:
    """Adds to the errors of results that cannot be read what one can do."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"{error}: the evaluation has been stopped or is still writing; wait for it, or "
            "evaluate again"
        ) from error


def read_each(
    run: Run, samples: Iterable[_T], add: Callable[[int, _T], Json], unread: list[str]
) -> list[Json]:
    """Describes images one by one, and notes those that cannot be read.

    Args:
        run: whose notes are added to.
        samples: of which each describes an image.
        add: of the number of an image and its sample, what the page shows of it.
        unread: why images could not be read; is added to.

    Raises:
        ValueError: not one can be read.
    """
    images: list[Json] = []
    for sample in samples:
        try:
            images.append(add(len(images), sample))
        except (OSError, ValueError) as error:
            unread.append(reason(error))
    if unread and not images:
        raise ValueError(f"no image can be read with its labels and prediction: {unread[0]}")
    note_unread(run, unread)
    return images


def note_unread(run: Run, unread: Sequence[str]) -> None:
    """Notes which images could not be read."""
    if unread:
        run.notes.append(f"{len(unread)} images cannot be read ({first_few(unread, 2)})")
