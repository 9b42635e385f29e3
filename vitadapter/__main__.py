"""The command line: `vitadapter COMMAND ...`, or `python -m vitadapter COMMAND ...`."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import NamedTuple, TextIO, TypeVar

from vitadapter import __version__
from vitadapter.install_detectron2 import MissingDetectron2Error
from vitadapter.known_warnings import ignore_warnings_at_import

__all__ = ["COMMANDS", "main"]


_Answer = TypeVar("_Answer")


class Command(NamedTuple):
    """What a command is, and the function `(arguments, prog) -> exit status` that runs it."""

    does: str
    function: str


COMMANDS = {
    "train": Command("train a model, or go on with a stopped run", "commands.train:train"),
    "eval": Command("evaluate trained weights on the test set", "commands.train:evaluate"),
    "predict": Command("detect or segment in images and videos", "commands.predict:predict"),
    "web": Command("try a model on a local page, by upload or webcam", "commands.web:main"),
    "zoo": Command("list the experiments and their trained models", "model_zoo.__main__:main"),
    "export": Command("write a model as ONNX or a program of torch.export", "commands.export:main"),
    "convert": Command("convert a checkpoint to this project's names", "commands.convert:main"),
    "report": Command("a page with what a run gets right and wrong", "commands.report:main"),
    "analyze": Command("AP by class and size of a finished evaluation", "commands.analyze:main"),
    "analyze-errors": Command("what each kind of error costs", "commands.analyze_errors:main"),
    "analyze-features": Command(
        "draw feature maps and their Fourier spectra", "commands.analyze_features:main"
    ),
    "analyze-model": Command("parameters and FLOPs of a model", "commands.analyze_model:main"),
    "estimate-memory": Command(
        "predict whether training fits a GPU", "commands.estimate_memory:main"
    ),
    "data": Command("check, convert, show or make data sets", "commands.data:main"),
    "doctor": Command("print what a bug report needs, and what is missing", "doctor:main"),
    "install-detectron2": Command("install Detectron2 from PyPI", "install_detectron2:main"),
}

EXAMPLES = """\
examples:
  vitadapter zoo "COCO/*dinov2*"
  vitadapter predict COCO/mask_rcnn_vit_adapter_s_deit_3x photo.jpg
  vitadapter train COCO/mask_rcnn_vit_adapter_s_dinov2_finetune dataset.root=my_data
  vitadapter eval COCO/mask_rcnn_vit_adapter_s_deit_3x
  torchrun --nproc_per_node 8 -m vitadapter train COCO/mask_rcnn_vit_adapter_s_deit_3x
"""


def usage() -> str:
    """The text of `vitadapter --help`."""
    width = max(map(len, COMMANDS)) + 2
    listed = "\n".join(f"  {name:{width}}{command.does}" for name, command in COMMANDS.items())
    return (
        "usage: vitadapter COMMAND ...\n\n"
        "ViT-Adapter for Detectron2: dense prediction on plain vision transformers.\n\n"
        f"commands:\n{listed}\n\n{EXAMPLES}\n"
        "`vitadapter COMMAND --help` explains a command. `vitadapter --version` prints the version."
    )


class _Output:
    """Ends the process in silence once nobody reads its output any more, as with `| head`.

    As an `OSError`, it would be reported like that of a file.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text."""
        return self._until_closed(partial(self._stream.write, text))

    def flush(self) -> None:
        """Writes what is left."""
        self._until_closed(self._stream.flush)

    def _until_closed(self, call: Callable[[], _Answer]) -> _Answer:
        try:
            return call()
        except BrokenPipeError:
            # Otherwise, Python would try to write the rest at the end, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            sys.exit(128 + signal.SIGPIPE)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Runs a command.

    Args:
        arguments: the command and its arguments; None for those of the process.

    Returns:
        int | None: the exit status.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name == "train" or sys.stdout is None:  # training goes on without its terminal
        return _run(name, rest)
    output = _Output(sys.stdout)
    with contextlib.redirect_stdout(output):
        try:
            return _run(name, rest)
        finally:
            output.flush()


def _run(name: str, rest: Sequence[str]) -> int | None:
    if name in ("-h", "--help", "help"):
        sys.stdout.write(f"{usage()}\n")
        return 0
    if name == "--version":
        sys.stdout.write(f"vitadapter {__version__}\n")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        sys.stderr.write(f"vitadapter: there is no command {name!r}: {hint}\n")
        return 2
    if name == "train":
        from vitadapter.engine.signals import exit_on_signals

        exit_on_signals()  # before the imports, which take seconds
    ignore_warnings_at_import()
    module, function = COMMANDS[name].function.split(":")
    try:
        run = getattr(import_module(f"vitadapter.{module}"), function)
    except MissingDetectron2Error as error:
        sys.stderr.write(f"error: {error} (or: vitadapter install-detectron2)\n")
        return 1
    return run(rest, prog=f"vitadapter {name}")


if __name__ == "__main__":
    sys.exit(main())
