"""Lists the experiments of the model zoo, and prints sizes and hashes of trained models.

``python -m vitadapter.model_zoo --list '*dinov2*'``
``python -m vitadapter.model_zoo --hash COCO/mask_rcnn_vit_adapter_s_deit_3x``
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vitadapter.checkpoint.cache import sha256_of
from vitadapter.checkpoint.reading import check_file
from vitadapter.checkpoint.sources import fetch
from vitadapter.model_zoo.configs import list_experiments
from vitadapter.model_zoo.trained_models import TRAINED_MODELS, TTA, zoo_address
from vitadapter.visualization.markdown import markdown_table


def _parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vitadapter.model_zoo",
        description="What is in the model zoo.",
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--list",
        nargs="?",
        const="*",
        metavar="PATTERN",
        help="experiments whose name matches, such as '*dinov2*', with the published figures of "
        "their trained models",
    )
    action.add_argument(
        "--hash",
        metavar="NAME|FILE",
        help="size and sha256 of a trained model, as its entry in trained_models.py takes them; "
        "that of an experiment is downloaded",
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
    if not path.is_file():
        path = fetch(zoo_address(name))
    check_file(path)
    return f'size={path.stat().st_size},\nsha256="{sha256_of(path)}",'


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what the arguments ask for; 1 where that is not to be had."""
    args = _parse_args(arguments)
    try:
        text = _table(args.list) if args.list is not None else _hash(args.hash)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(text)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
