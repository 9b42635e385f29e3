"""`vitadapter analyze-model`: parameters and FLOPs of a config's model by part and operator.

Neither a GPU nor weights are needed: the model is built without memory.
"""

import argparse
import sys
from collections.abc import Sequence

from vitadapter.analysis import analyze_model
from vitadapter.commands.arguments import CONFIG, OVERRIDES, command_parser
from vitadapter.engine.overrides import load_config

_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x --size 800 1280
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x model.backbone.bottom_up.num_interactions=2
"""


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> None:
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=[800, 1280],
        metavar=("HEIGHT", "WIDTH"),
        help="of the image, in pixels (default: 800 1280, as in the paper's table 7)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    args = parser.parse_intermixed_args(arguments)
    height, width = args.size
    try:
        cfg = load_config(args.config_file, args.overrides)
        print(analyze_model(cfg, (height, width)).table())
    except ValueError as error:
        sys.exit(f"error: {error}")


def script(arguments: Sequence[str] | None = None) -> None:
    """Runs with the options of `scripts/analyze_model.py`; `arguments` as for `main`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help=CONFIG)
    _run(parser, arguments)


def main(arguments: Sequence[str] | None = None, prog: str = "vitadapter analyze-model") -> None:
    """Prints the figures.

    Args:
        arguments: of the command line; None for those of the process.
        prog: name of the command in messages.
    """
    _run(command_parser(prog, str(__doc__), _EXAMPLES), arguments)
