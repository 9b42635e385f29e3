"""Where the curves and pictures of a run go: the log, `metrics.json` and `train.writers`."""

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, TensorboardXWriter
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitadapter.engine.agreement import agree
from vitadapter.engine.building import build
from vitadapter.engine.progress import ProgressPrinter
from vitadapter.engine.scalars import KeptRows, MetricsWriter
from vitadapter.engine.trackers import MLflowWriter, Tracker, WandbWriter, check_installed
from vitadapter.visualization.metrics_file import METRICS_NAME

__all__ = ["WRITERS", "WriterHook", "check_writers", "open_writers", "plain_config"]

logger = logging.getLogger(__name__)

WRITERS: dict[str, Callable[[str], EventWriter]] = {
    "tensorboard": TensorboardXWriter,
    "wandb": WandbWriter,
    "mlflow": MLflowWriter,
}
"""What `train.writers` may name, by the packages that they need."""


def check_writers(wanted: Sequence[object] | None) -> None:
    """Refuses writers whose package is not installed.

    Args:
        wanted: `train.writers`.

    Raises:
        ValueError: says how to install it.
    """
    for name in wanted or ():
        if isinstance(name, str):
            check_installed(name)


def _chosen(wanted: Sequence[object] | None) -> Sequence[object]:
    """The writers that are asked for; without a wish, TensorBoard where it is installed."""
    if wanted is not None:
        return wanted
    if importlib.util.find_spec("tensorboard") is not None:
        return ["tensorboard"]
    logger.warning("tensorboard is not installed: curves are written to metrics.json only")
    return []


def _built(wanted: object, number: int, output_dir: str) -> EventWriter:
    if isinstance(wanted, str):
        return WRITERS[wanted](output_dir)
    key = f"train.writers.{number}"
    writer = build(wanted, key)
    if not isinstance(writer, EventWriter):
        raise ValueError(f"{key} must build a Detectron2 EventWriter, got {writer!r}")
    return writer


def _plain(node: object) -> object:
    """Containers of what every tracker can keep: classes become their names."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return node if isinstance(node, str | int | float | None) else str(node)


def plain_config(cfg: DictConfig) -> dict[str, object]:
    """The whole config for a tracker; where a reference leads nowhere, with all as they stand."""
    try:
        content = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException:
        content = OmegaConf.to_container(cfg, resolve=False)
    return cast(dict[str, object], _plain(content))


def _continue_events(writer: TensorboardXWriter, kept: KeptRows) -> None:
    """Makes TensorBoard hide what is written again, and writes nothing else twice."""
    if kept.replaced_from is not None:
        # Detectron2 has no other access. It opens the file with the first scalar.
        writer._writer_args.setdefault("purge_step", kept.replaced_from)
    writer._last_write = kept.last


@contextlib.contextmanager
def _survived(writer: EventWriter, action: str) -> Iterator[None]:
    """Names what a full disk does to a writer, which is no reason to stop training."""
    try:
        yield
    except OSError as error:
        logger.error("%s cannot %s: %s", type(writer).__name__, action, error)


def _close(writer: EventWriter) -> None:
    with _survived(writer, "close"):
        writer.close()


@contextlib.contextmanager
def open_writers(
    train: DictConfig, config: Mapping[str, object], *, is_resumed: bool, kept: KeptRows
) -> Iterator[Sequence[EventWriter]]:
    """Opens what the main process of a run writes to, and closes it whatever happens.

    Args:
        train: `train` of the config.
        config: the whole config, for trackers.
        is_resumed: whether the run in the output folder goes on.
        kept: what it keeps of its `metrics.json`.

    Yields:
        The line of the log, `metrics.json` and what `train.writers` asks for; nothing in other
        processes.

    Raises:
        ValueError: in all processes, if a writer cannot be built or a tracker refuses the run.
    """
    written: list[EventWriter] = []
    with contextlib.ExitStack() as closed:

        def open_all() -> None:
            for number, wanted in enumerate(_chosen(train.writers)):
                writer = _built(wanted, number, train.output_dir)
                closed.callback(_close, writer)
                if isinstance(writer, Tracker):
                    writer.start(config, is_resumed=is_resumed)
                if isinstance(writer, TensorboardXWriter):
                    _continue_events(writer, kept)
                written.append(writer)
            # Detectron2's writer for TensorBoard takes the pictures away from those behind it.
            written.sort(key=lambda writer: isinstance(writer, TensorboardXWriter))
            metrics = MetricsWriter(Path(train.output_dir, METRICS_NAME), kept)
            # The printer adds the time that is left, which the others write.
            written[:0] = [ProgressPrinter(train.max_iter), metrics]

        agree(open_all)
        yield written
        for writer in written:
            if isinstance(writer, Tracker):
                writer.has_failed = False


class WriterHook(HookBase):
    """Lets the writers write, as Detectron2's `PeriodicWriter` does, without closing them.

    Args:
        writers: the writers.
        period: in iterations.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int) -> None:
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        """Writes if it is time, or if this was the last iteration."""
        completed = self.trainer.iter + 1
        if completed % self._period == 0 or completed >= self.trainer.max_iter:
            self._write()

    def after_train(self) -> None:
        """Writes what other hooks have found after training, or up to its stop."""
        for writer in self._writers:
            if isinstance(writer, MetricsWriter):
                writer.is_stopped = self.trainer.iter < self.trainer.max_iter
        self._write()

    def last_written(self) -> int:
        """The iteration up to which all scalars are in `metrics.json`; -1 before.

        A run that was resumed may have later rows: those of evaluations before its start.
        """
        due = self.trainer.iter // self._period * self._period - 1
        written = [w.last for w in self._writers if isinstance(w, MetricsWriter)]
        return min(due, *written) if written else -1

    def _write(self) -> None:
        for writer in self._writers:
            with _survived(writer, "write"):
                writer.write()
        self.trainer.storage.clear_images()
