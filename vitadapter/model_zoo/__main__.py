"""Lists the experiments of the model zoo, and prints sizes and hashes of trained models.

It is the command `vitadapter zoo`, or `python -m vitadapter.model_zoo`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vitadapter.checkpoint.cache import sha256_of
from vitadapter.checkpoint.reading import check_file
from vitadapter.checkpoint.sources import fetch
from vitadapter.model_zoo.configs import is_file, list_experiments
from vitadapter.model_zoo.trained_models import TRAINED_MODELS, TTA, zoo_address
from vitadapter.visualization.markdown import markdown_table

_EXAMPLES = """
examples:
  %(prog)s
  %(prog)s "COCO/*dinov2*"
  %(prog)s --hash COCO/mask_rcnn_vit_adapter_s_deit_3x
"""


def _parse_args(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Lists the experiments with the published figures of their trained models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "pattern", nargs="?", default="*", help="of the experiments' names, such as '*dinov2*'"
    )
    action.add_argument(
        "--hash",
        metavar="NAME|FILE",
        help="instead, the size and sha256 of a trained model, as its entry in trained_models.py "
        "takes them; that of an experiment is downloaded",
    )
    return parser.parse_args(arguments)


def _table(pattern: str) -> str:
    rows = [["experiment", "published", "with test-time augmentation"]]
    for name in list_experiments(pattern):
        model = TRAINED_MODELS.get(name)
        published = {} if model is None else model.published
        figures = [published.get(overrides, {}) for overrides in ("", TTA)]
        cells = [", ".join(f"{key} {value:.1f}" for key, value in f.items()) for f in figures]
        missing = "no trained model" if model is None else "-"
        rows.append([name, cells[0] or missing, cells[1] or "-"])
    if len(rows) == 1:
        raise ValueError(f"no experiment matches {pattern!r}")
    return markdown_table(rows)


def _hash(name: str) -> str:
    path = Path(name)
    if not is_file(path):
        path = fetch(zoo_address(name))
    check_file(path)
    return f'size={path.stat().st_size},\nsha256="{sha256_of(path)}",'


def main(
    arguments: Sequence[str] | None = None, prog: str = "python -m vitadapter.model_zoo"
) -> int:
    """Prints what the arguments ask for; 1 where that is not to be had."""
    args = _parse_args(arguments, prog)
    try:
        text = _table(args.pattern) if args.hash is None else _hash(args.hash)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(text)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
