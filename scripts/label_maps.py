"""Shared code of `prepare_*.py`: finds, converts and writes label maps in bulk."""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vitadapter.data.image_files import read_numbers

__all__ = [
    "IGNORED",
    "convert_files",
    "find_files",
    "folder_parser",
    "look_up",
    "run_or_exit",
    "write_labels",
]

IGNORED = 255
"""Label of pixels that belong to no class."""


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder, in the order of their names.

    Raises:
        ValueError: no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist")
    found = sorted(p for p in folder.glob(pattern) if not p.name.startswith("._"))  # of macOS
    if not found:
        raise ValueError(f"{folder} has no file {pattern}")
    return found


def look_up(
    labels: np.ndarray, classes: Mapping[int, int], default: int, num_labels: int = 256
) -> np.ndarray:
    """The class of each label.

    Args:
        labels: `(H, W)`.
        classes: of the labels that have one.
        default: of all other labels.
        num_labels: labels are 0 .. `num_labels` - 1.

    Returns:
        np.ndarray: `(H, W)` uint8.

    Raises:
        ValueError: not one integer per pixel, or one that is out of range.
    """
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"label ids must be one integer per pixel, got {labels.shape} {labels.dtype}"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < num_labels:
        raise ValueError(
            f"label ids must lie in 0 .. {num_labels - 1}, got {labels.min()} .. {labels.max()}"
        )
    table = np.full(num_labels, default, dtype=np.uint8)
    table[list(classes.keys())] = list(classes.values())
    return table[labels]


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Writes a label map completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    Image.fromarray(labels).save(draft, format="png")
    draft.replace(path)


def convert_files(
    pairs: Iterable[tuple[Path, Path]],
    convert: Callable[[np.ndarray], np.ndarray],
    read: Callable[[Path], np.ndarray] = read_numbers,
) -> int:
    """Converts label maps.

    Args:
        pairs: file to read and file to write.
        convert: from the labels of the one to those of the other.
        read: from a file to its labels.

    Returns:
        How many.

    Raises:
        ValueError: labels that cannot be converted; names the file.
    """
    count = 0
    for source, target in pairs:
        try:
            labels = convert(read(source))
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(f"{source} cannot be converted: {error}") from error
        write_labels(target, labels)
        count += 1
    return count


def folder_parser(description: str | None, **folders: str) -> ArgumentParser:
    """Makes a parser with folders as arguments.

    Args:
        description: of the script.
        folders: the help of each, in their order.
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    for name, text in folders.items():
        parser.add_argument(name, type=Path, help=text)
    return parser


def run_or_exit(prepare: Callable[..., int], args: Namespace) -> None:
    """Calls `prepare`, which returns how many maps it has written; errors end the program."""
    try:
        count = prepare(**vars(args))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} label maps written")
