"""Whether torchrun has started this run before, so that it goes on without `--resume`.

torchrun starts the processes again after a failure (`--max-restarts`), and when a machine joins or
leaves (`--nnodes MIN:MAX`), which it does not count. A Slurm job that is queued again keeps its
number. Therefore the output folder keeps torchrun's name for the run (`--rdzv_id`), or without one,
that of its process.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from detectron2.utils import comm

__all__ = ["is_restart", "note_run"]

_NAME = "torchrun_id"
_UNNAMED = "none"  # torchrun's default


def _run_id(environment: Mapping[str, str]) -> str | None:
    name = environment.get("TORCHELASTIC_RUN_ID") or None
    # The agent that starts the processes again stays the same.
    return f"{socket.gethostname()} {os.getppid()}" if name == _UNNAMED else name


def is_restart(folder: str | Path, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started the run of an output folder before; the same in all processes.

    Args:
        folder: the output folder, which need not exist.
        environment: environment variables, which torchrun sets.
    """
    file, name = Path(folder, _NAME), _run_id(environment)
    noted = name is not None and file.is_file() and file.read_text() == name
    # Not the count of restarts: what was refused at first must not go on because it was repeated.
    return any(comm.all_gather(noted))


def note_run(folder: str | Path, environment: Mapping[str, str] = os.environ) -> None:
    """Makes the output folder keep torchrun's name for the run, if it has one.

    Args:
        folder: the output folder, which exists.
        environment: environment variables, which torchrun sets.
    """
    name = _run_id(environment)
    if name is not None and comm.is_main_process():
        Path(folder, _NAME).write_text(name)
