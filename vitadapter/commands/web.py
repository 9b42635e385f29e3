"""`vitadapter web`: a page on this machine to try a model on uploaded images."""

import argparse
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from vitadapter.commands.arguments import OVERRIDES, WEIGHTS, command_parser
from vitadapter.commands.predictors import find_model
from vitadapter.engine.launch import check_alone
from vitadapter.engine.run_checks import setup_errors
from vitadapter.engine.signals import set_handlers

__all__ = ["main"]

_DESCRIPTION = """\
Serves a page on which images are uploaded or taken by a webcam and the model's predictions are
shown: above a score, of chosen classes, with or without boxes, masks and labels. The results can be
downloaded as `vitadapter predict` writes them.

Only this machine reaches the page unless --host says otherwise. An upload is deleted once it is
read, and pictures of it some minutes later. Ctrl-C ends it.
It needs Gradio: pip install 'vitadapter[web]'
"""
_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x    # the published weights
  %(prog)s output/model_final.pth                  # a checkpoint carries its config
  %(prog)s detector.onnx                           # a file of `vitadapter export`
"""


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # which removes what the page has written


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--weights", default="zoo", help=f"{WEIGHTS} (default: zoo)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; 0.0.0.0 lets everyone in who reaches this machine "
        "(default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument("--port", type=int, help="to listen at; by default the first free one")
    parser.add_argument(
        "--max-megabytes", type=float, default=25, help="of an uploaded file (default: 25)"
    )
    parser.add_argument(
        "--max-megapixels", type=float, default=25, help="of an uploaded image (default: 25)"
    )
    parser.add_argument("--overrides", nargs="+", default=[], metavar="key=value", help=OVERRIDES)
    return parser


def _serve(args: argparse.Namespace) -> None:
    # Gradio is a package that few need, and takes seconds to import.
    from vitadapter.web import Limits, serving

    limits = Limits(args.max_megabytes, args.max_megapixels)
    with setup_errors():
        predictor = find_model(args.config_file, args.weights, args.overrides).predictor()
    title = "/".join(Path(args.config_file).parts[-2:])
    with serving(predictor, title, limits, args.host, args.port) as address:
        print(f"{args.config_file}: {address} (Ctrl-C ends it)", flush=True)
        while True:
            time.sleep(3600)


def main(arguments: Sequence[str], prog: str = "vitadapter web") -> int:
    """Serves the page until a signal ends it.

    Args:
        arguments: of the command line.
        prog: name of the command in messages.

    Returns:
        The exit status.
    """
    parser = _parser(prog)
    args = parser.parse_args(arguments)
    if args.port is not None and not 0 < args.port < 2**16:
        parser.error(f"--port must be in 1..65535, got {args.port}")
    if find_spec("gradio") is None:
        print("error: the page needs Gradio: pip install 'vitadapter[web]'", file=sys.stderr)
        return 1
    set_handlers(_stop)
    try:
        check_alone()
        _serve(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
