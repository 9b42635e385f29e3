"""Warnings of the libraries below us that say nothing about a run and that no user can act on."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

__all__ = ["without_known_warnings"]

# Beginnings of messages and the modules that give them: any other warning is shown.
_WARNED = (
    # Detectron2's anchors and PyTorch's own Swin call it in the old way.
    (r"torch\.meshgrid: in an upcoming release", r"torch\.functional"),
)
_LOGGED = (
    # Detectron2 asks for the compiler's version; on a machine without GPUs that finds an nvcc.
    ("No CUDA runtime is found", "torch.utils.cpp_extension"),
    # Detectron2's layers ask whether they are traced.
    ("is_fx_tracing will return true", "torch.fx._symbolic_trace"),
)


class _Without(logging.Filter):
    """Drops records that begin with a text."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginning)


@contextlib.contextmanager
def without_known_warnings() -> Iterator[None]:
    """Silences the warnings that this file lists; on leaving, they are shown again."""
    with contextlib.ExitStack() as undone:
        undone.enter_context(warnings.catch_warnings())
        for beginning, module in _WARNED:
            warnings.filterwarnings("ignore", beginning, module=module)
        for beginning, name in _LOGGED:
            logger, dropped = logging.getLogger(name), _Without(beginning)
            logger.addFilter(dropped)
            undone.callback(logger.removeFilter, dropped)
        yield
