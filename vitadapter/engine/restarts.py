"""Whether torchrun has started this run before, so that it goes on without `--resume`.

torchrun starts the processes again after a failure (`--max-restarts`), and when a machine joins or
leaves (`--nnodes MIN:MAX`), which it does not count. A Slurm job that is queued again keeps its
number. Therefore the output folder keeps torchrun's name for the run (`--rdzv_id`).
"""

import os
from collections.abc import Mapping
from pathlib import Path

from detectron2.utils import comm

__all__ = ["is_restart", "note_run"]

_NAME = "torchrun_id"
_UNNAMED = ("", "none")  # torchrun's default is "none"


def _run_id(environment: Mapping[str, str]) -> str | None:
    name = environment.get("TORCHELASTIC_RUN_ID", "")
    return None if name in _UNNAMED else name


def is_restart(folder: str | Path, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started the run of an output folder before; the same in all processes.

    Args:
        folder: the output folder, which need not exist.
        environment: environment variables, which torchrun sets.
    """
    file, name = Path(folder, _NAME), _run_id(environment)
    # A machine that has joined later counts from 0.
    counted = environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    noted = name is not None and file.is_file() and file.read_text() == name
    return any(comm.all_gather(counted or noted))


def note_run(folder: str | Path, environment: Mapping[str, str] = os.environ) -> None:
    """Makes the output folder keep torchrun's name for the run, if it has one.

    Args:
        folder: the output folder, which exists.
        environment: environment variables, which torchrun sets.
    """
    name = _run_id(environment)
    if name is not None and comm.is_main_process():
        Path(folder, _NAME).write_text(name)
