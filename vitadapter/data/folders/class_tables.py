"""Tables of classes that lie beside label maps: names, numbers and colours."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np

from vitadapter.data.folders.listing import Listing

__all__ = ["ClassTable", "find_class_names", "find_class_table", "packed"]

T = TypeVar("T", int, np.ndarray)

logger = logging.getLogger(__name__)

_FILE = re.compile(
    r"_?class(?:es|_dict|_names)|label(?:s|_?map)?|(?:label_?|class_?)?colou?rs?|palette"
)
_NAME_FIRST = re.compile(r"(.+?)\s*[,;:\t ]\s*(\d+)\s*[,\s]\s*(\d+)\s*[,\s]\s*(\d+)\s*(?::.*)?")
_COLOUR_FIRST = re.compile(r"(\d+)\s*[,\s]\s*(\d+)\s*[,\s]\s*(\d+)\s*[,;:\s]\s*(.+)")
_NUMBERED = re.compile(r"(\d+)\s*[,;:\s]\s*(.+)")
_HEADS = re.compile(r"\W*(?:name|class|label|pixel|r\b|id\b|red|colou?r).*", re.IGNORECASE)
_NO_CLASS = {"void", "ignore", "ignored", "unlabeled", "unlabelled"}
# What labelme's own examples list, and say of regions, that are no objects.
NO_OBJECTS = ("__ignore__", "_background_")


def packed(red: T, green: T, blue: T) -> T:
    """A colour, or the channels of many, as one number."""
    return red << 16 | green << 8 | blue


@dataclass(frozen=True)
class ClassTable:
    """Classes by what label maps hold.

    Attributes:
        names: of the classes.
        values: class of each number or, with `coloured`, `packed` colour; None where it is
            to be ignored.
        coloured: whether label maps hold colours.
    """

    names: tuple[str, ...]
    values: Mapping[int, int | None]
    coloured: bool = False

    def is_plain(self, ignore_label: int) -> bool:
        """Whether the numbers in label maps are the classes, and `ignore_label`."""
        return not self.coloured and all(
            number == (ignore_label if value is None else value)
            for number, value in self.values.items()
        )


def _rows(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(name, numbers) of each line: 3 numbers of a colour, 1 of a label, or none."""
    rows = []
    lines = [line.strip() for line in text.splitlines()]
    for line in (line for line in lines if line and not line.startswith("#")):
        if match := _COLOUR_FIRST.fullmatch(line):
            rows.append((match[4].strip(), tuple(map(int, match.groups()[:3]))))
        elif match := _NAME_FIRST.fullmatch(line):
            rows.append((match[1].strip(), tuple(map(int, match.groups()[1:]))))
        elif match := _NUMBERED.fullmatch(line):
            rows.append((match[2].strip(), (int(match[1]),)))
        else:
            rows.append((line, ()))
    if len(rows) > 1 and not rows[0][1] and rows[1][1] and _HEADS.fullmatch(rows[0][0]):
        del rows[0]
    return rows


def _table(text: str, source: str) -> ClassTable:
    rows = _rows(text)
    if not rows:
        raise ValueError(f"{source} lists no class: write one per line, or delete it")
    kinds = {len(numbers) for _, numbers in rows}
    if len(kinds) != 1:
        raise ValueError(
            f"{source} must have one kind of line: a name, a number and a name, or a name and a "
            "colour (three numbers)"
        )
    names: list[str] = []
    values: dict[int, int | None] = {}
    for position, (name, numbers) in enumerate(rows):
        if any(number > 255 for number in numbers):
            raise ValueError(f"{source}: numbers must lie in 0..255, got {numbers} of {name!r}")
        value = packed(*numbers) if len(numbers) == 3 else numbers[0] if numbers else position
        if value in values or name in names:
            raise ValueError(f"{source} has the class or value of {name!r} twice")
        is_class = re.split(r"[^a-z_]", name.lower())[0] not in (_NO_CLASS if numbers else ())
        values[value] = len(names) if is_class else None
        names += [name] * is_class
    return ClassTable(tuple(names), values, kinds == {3})


def find_class_table(listing: Listing) -> ClassTable | None:
    """The table of the folder, if there is one; one of colours goes before others.

    Read are `class_dict.csv` (name, red, green, blue), CVAT's `labelmap.txt`, `label_colors.txt`,
    Roboflow's `_classes.csv` (number, name) and `classes.txt` (names). Of colours and numbers, the
    names void, ignore and unlabeled are no classes.

    Raises:
        ValueError: a line or table that contradicts another; names the file.
    """
    tables: list[tuple[ClassTable, str]] = []
    for file in listing.named(".csv", ".txt"):
        if not _FILE.fullmatch(PurePosixPath(file).stem.lower()):
            continue
        try:
            text = listing.path(file).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} must be a text file: {error}") from error
        table = _table(text, file)
        if all(table != known for known, _ in tables):  # Roboflow writes one for each split
            tables.append((table, file))
    tables = [(table, file) for table, file in tables if table.coloured] or tables
    if len(tables) > 1:
        raise ValueError(
            f"{tables[0][1]} and {tables[1][1]} tell of different classes: leave one out by "
            f"dataset.exclude=['{tables[1][1]}']"
        )
    return tables[0][0] if tables else None


def find_class_names(listing: Listing) -> tuple[str, ...] | None:
    """Names of the classes of objects, if a table of the folder tells them; see above."""
    table = find_class_table(listing)
    if table is None:
        return None
    return tuple(name for name in table.names if name not in NO_OBJECTS)
