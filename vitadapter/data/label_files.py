"""Reading, converting and writing label maps in bulk, for `scripts/prepare_*.py`."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from vitadapter.data.image_files import read_numbers

__all__ = ["convert_files", "find_files", "write_labels"]


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


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Writes a label map as a whole or not at all."""
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
