"""What a run says and keeps of itself: the terminal, `log.txt` and `config.yaml`.

Unlike Detectron2's `default_setup`, it is undone when the run ends, so that each of several runs in
a process has its own `log.txt`; it leaves the logging of a program that calls us alone; and it
writes no file before everything has been found to work.
"""

import contextlib
import copy
import logging
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from logging.handlers import MemoryHandler
from pathlib import Path

from detectron2.config import LazyConfig
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.logger import _ColorfulFormatter
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitadapter.engine.checkpoint import BEST_NAME, FINAL_NAME, saved_files
from vitadapter.engine.pictures import PICTURES_NAME
from vitadapter.known_warnings import without_known_warnings
from vitadapter.visualization.metrics_file import METRICS_NAME

__all__ = ["CONFIG_NAME", "LOG_NAME", "RunLog"]

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
"""Name of the file that has the whole config of a run."""

LOG_NAME = "log.txt"
"""Name of the file that has what a run has logged."""

_LOGGERS = ("vitadapter", "detectron2", "fvcore")
_DATES = "%m/%d %H:%M:%S"
_PLAIN = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
_COLORED = "\033[32m[%(asctime)s %(name)s]:\033[0m %(message)s"

# Asking for compilers and devices takes half a second.
_environment = cache(collect_env_info)


class _AsBefore(logging.Handler):
    """Passes on what a logger would have passed on if its level had not been lowered for us."""

    def __init__(self, source: logging.Logger) -> None:
        super().__init__(source.getEffectiveLevel())
        self._parent = source.parent if source.propagate else None

    def emit(self, record: logging.LogRecord) -> None:
        # Without handlers, Python would write warnings to the terminal a second time.
        if self._parent is not None and self._parent.hasHandlers():
            self._parent.callHandlers(record)


def _terminal() -> logging.Handler:
    """Detectron2's form, with colours where they can be seen."""
    handler = logging.StreamHandler(sys.stdout)
    formatter = logging.Formatter(_PLAIN, _DATES)
    if sys.stdout.isatty():
        formatter = _ColorfulFormatter(_COLORED, _DATES, root_name="detectron2", abbrev_name="d2")
    handler.setFormatter(formatter)
    return handler


def _writes_to(named: logging.Logger, path: Path) -> bool:
    """Whether a logger writes to a file already, as after `default_setup` for the same folder."""
    streams = (getattr(handler, "stream", None) for handler in named.handlers)
    names = (getattr(stream, "name", None) for stream in streams)
    return any(isinstance(name, str) and Path(name).absolute() == path for name in names)


@contextlib.contextmanager
def _logging_to(named: logging.Logger, handlers: list[logging.Handler]) -> Iterator[None]:
    """Gives a logger these handlers, behind which it goes on as before."""
    level, propagate = named.level, named.propagate
    added = [*handlers, _AsBefore(named)]
    for handler in added:
        named.addHandler(handler)
    named.setLevel(logging.DEBUG)
    named.propagate = False
    try:
        yield
    finally:
        for handler in added:
            named.removeHandler(handler)
        named.setLevel(level)
        named.propagate = propagate


class RunLog:
    """Logs a run to its `log.txt` and, unless the program has set up logging, to the terminal.

    Warnings that no user can act on are silent meanwhile. Until `start`, what goes to the file is
    kept in memory.

    Args:
        output_dir: the output folder. Its `log.txt` is appended to; other processes than the main
            one write `log.txt.rank1` and so on, and nothing to the terminal.
    """

    def __init__(self, output_dir: str) -> None:
        self._folder = Path(output_dir)
        rank = comm.get_rank()
        name = LOG_NAME if rank == 0 else f"{LOG_NAME}.rank{rank}"
        self._path = self._folder.absolute() / name
        # Nothing is so severe that it would be written before the start.
        self._memory = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
        self._undone = contextlib.ExitStack()
        self._file: logging.FileHandler | None = None
        self._config: DictConfig | None = None

    def __enter__(self) -> "RunLog":
        self._undone.enter_context(without_known_warnings())
        for named in map(logging.getLogger, _LOGGERS):
            handlers: list[logging.Handler] = (
                [] if _writes_to(named, self._path) else [self._memory]
            )
            if comm.is_main_process() and not named.hasHandlers():
                handlers.append(_terminal())
            self._undone.enter_context(_logging_to(named, handlers))
        return self

    def __exit__(self, *raised: object) -> None:
        self._undone.close()
        self._memory.close()
        if self._file is not None:
            with contextlib.suppress(OSError):  # the rest of the log, on a full disk
                self._file.close()

    def describe(self, cfg: DictConfig, *, is_kept: bool = True) -> None:
        """Logs what the run runs on, and remembers its config as it is now.

        Args:
            cfg: the whole config.
            is_kept: whether `start` writes it to `config.yaml`.
        """
        self._config = copy.deepcopy(cfg) if is_kept else None
        logger.info("Results go to %s", self._folder)
        logger.info(
            "Rank of this process: %d. World size: %d", comm.get_rank(), comm.get_world_size()
        )
        logger.info("Environment:\n%s", _environment())
        logger.info("Command line: %s", shlex.join(sys.argv))

    def start(self) -> None:
        """Writes the files, now that nothing will be refused any more.

        Raises:
            OSError: the folder cannot be written to.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = logging.FileHandler(self._path, encoding="utf-8")
        self._file.setFormatter(logging.Formatter(_PLAIN, _DATES))
        self._memory.setTarget(self._file)
        # From here on, each record is written at once.
        self._memory.capacity = 1
        if comm.is_main_process() and self._config is not None:
            path = self._folder / CONFIG_NAME
            try:
                LazyConfig.save(self._config, str(path))
            except OmegaConfBaseException:  # a part that nobody uses has a reference to nothing
                OmegaConf.save(self._config, path)
            logger.info("The whole config is saved in %s", path)
        self._memory.flush()

    def end(self, predictions: Path | None, report: Path | None) -> None:
        """Says in one line where the results are.

        Args:
            predictions: the folder of the evaluator, if it has one.
            report: the page of this run's report, if it has one.
        """
        names = {"weights": FINAL_NAME, "best weights": BEST_NAME}
        found = {what: saved_files(self._folder, name) for what, name in names.items()}
        paths = {
            **{what: files[0] for what, files in found.items() if files},
            "metrics": self._folder / METRICS_NAME,
            "predictions": predictions,
            "report": report,
            "pictures": self._folder / PICTURES_NAME,
            "log": self._folder / LOG_NAME,
            "config": self._folder / CONFIG_NAME,
        }
        there = {what: path for what, path in paths.items() if path is not None and path.exists()}
        listed = [f"{what} {path}" for what, path in there.items()]
        logger.info("Done: %s", ", ".join(listed))
