"""Warnings of the libraries below us that say nothing about a run and that no user can act on."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator

__all__ = ["ignore_warnings_at_import", "without_known_warnings"]

# Beginnings of messages, their kinds, and the modules that give them: any other warning is shown.
_AT_IMPORT = (
    # fvcore, Detectron2 and timm use what PyTorch deprecates.
    ("`torch.jit", FutureWarning, "torch.jit._script"),
)
_IN_RUNS = (
    # Detectron2's anchors call it in the old way.
    ("torch.meshgrid: in an upcoming release", UserWarning, "torch.functional"),
    # Nothing changes what this head returns in place; of other modules the warning is shown.
    (
        "FSDP2-wrapped module (FSDPMask2FormerHead) returned a view tensor",
        UserWarning,
        "torch.distributed.fsdp._fully_shard._fsdp_state",
    ),
    # A run with one process saves in parts as well, with one part.
    (
        "torch.distributed is disabled, unavailable or uninitialized, assuming the intent is to "
        "save in a single process",
        UserWarning,
        "torch.distributed.checkpoint.utils",
    ),
    # An export, where torchvision uses what PyTorch deprecates.
    ("`create_unbacked_symint` is deprecated", FutureWarning, "torchvision._meta_registrations"),
)
_LOGGED = (
    # Detectron2 asks for the compiler's version; on a machine without GPUs that finds an nvcc.
    ("No CUDA runtime is found", "torch.utils.cpp_extension"),
    # Detectron2's layers ask whether they are traced.
    ("is_fx_tracing will return true", "torch.fx._symbolic_trace"),
    # An export to ONNX, of nodes that are not computed beforehand and of empty lists.
    ("Skipping constant folding for op", "onnxscript.optimizer._constant_folding"),
    ("Attribute type is ambiguous", "onnx_ir._convenience"),
)


class _Without(logging.Filter):
    """Drops records that begin with a text."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginning)


def _ignore(known: Iterable[tuple[str, type[Warning], str]]) -> None:
    for beginning, kind, module in known:
        warnings.filterwarnings("ignore", re.escape(beginning), kind, re.escape(module))


def ignore_warnings_at_import() -> None:
    """Silences the imports of a command's process, and of the processes that it starts."""
    _ignore(_AT_IMPORT)
    # These import before anything of ours runs.
    wanted = [f"ignore:{beginning}:{kind.__name__}" for beginning, kind, _ in _AT_IMPORT]
    given = os.environ.get("PYTHONWARNINGS", "").split(",")
    # Later ones win, so that what the user says counts.
    others = [one for one in given if one and one not in wanted]
    os.environ["PYTHONWARNINGS"] = ",".join([*wanted, *others])


@contextlib.contextmanager
def without_known_warnings() -> Iterator[None]:
    """Silences the warnings of runs; on leaving, they are shown again."""
    with contextlib.ExitStack() as undone:
        undone.enter_context(warnings.catch_warnings())
        _ignore(_IN_RUNS)
        for beginning, name in _LOGGED:
            logger, dropped = logging.getLogger(name), _Without(beginning)
            logger.addFilter(dropped)
            undone.callback(logger.removeFilter, dropped)
        yield
