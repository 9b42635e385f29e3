"""What COCO's json formats have in common: lists of entries with ids, images, and flags.

Each function refuses what cannot be right by a `ValueError` that names the file and the entry.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from logging import Logger
from numbers import Integral, Real
from pathlib import Path
from typing import TypeVar

from detectron2.utils.file_io import PathManager

__all__ = [
    "Findings",
    "by_id",
    "check_image",
    "file_name_of",
    "find_id",
    "flag",
    "image_path",
    "is_id",
    "listed",
    "name_of",
    "note_shared_files",
    "read_json",
    "told",
]

Entry = Mapping[str, object]
T = TypeVar("T")

# Of an image, so that pycocotools' 32 bits can count them.
_MAX_PIXELS = 2**31
_SHARED = "{} files are those of an image with another id too, which has annotations of its own"
_KINDS = {
    type(None): "null",
    bool: "a boolean",
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), f"a {type(value).__name__}")


class Findings:
    """What a reader mends or leaves out: each kind is counted, and told in one warning."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, kind: str, example: str) -> None:
        """
        Args:
            kind: what was done, with "{}" where the number belongs.
            example: the place; that of the first of a kind is told.
        """
        self._counts[kind] += 1
        self._examples.setdefault(kind, example)

    def warn(self, logger: Logger, source: str) -> None:
        """Logs one warning for each kind."""
        for kind, count in self._counts.items():
            logger.warning("%s: %s, such as %s", source, kind.format(count), self._examples[kind])


def told(where: str, function: Callable[..., T], *arguments: object) -> T:
    """What a function returns; a `ValueError` of it begins with the place."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from error


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of json; of two values under one key Python would keep the last alone."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {key!r} more than once")
    return entry


def read_json(json_file: str | Path) -> object:
    """What a file holds, with or without a byte order mark.

    Raises:
        OSError: it cannot be read.
        ValueError: not json, or a key that an object has twice; names the file.
    """
    with PathManager.open(str(json_file), "rb") as file:
        content = file.read()
    try:
        # Of bytes: finds the encoding by itself.
        return json.loads(content, object_pairs_hook=_unrepeated)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{json_file} is not json ({error})") from error
    except ValueError as error:  # of an object or a number in it
        raise ValueError(f"{json_file}: {error}") from error


def listed(
    content: object, key: str, source: str, *, may_be_empty: bool = False
) -> Sequence[Entry]:
    """The entries under a key of a file, which must be a list of objects."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} holds {_kind(content)} instead of an object")
    if key not in content:
        raise ValueError(f"{source} has no {key}")
    entries = content[key]
    if not isinstance(entries, list):
        raise ValueError(f"{source} must have a list as its {key}, got {_kind(entries)}")
    if not entries and not may_be_empty:
        raise ValueError(f"{source} has no {key}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise ValueError(f"{source}: {key}[{number}] must be an object, got {entry!r:.80}")
    return entries


def _is_whole(value: object) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_id(value: object) -> bool:
    """Whether it can be the id of an image or a category: a whole number or a text."""
    if isinstance(value, str):
        return value != ""
    return _is_whole(value) and -(2**63) <= value < 2**63


def by_id(
    entries: Sequence[Entry], key: str, source: str, label: str
) -> dict[int | str, dict[str, object]]:
    """Copies of entries in the order of their ids.

    Args:
        entries: with "id".
        key: under which the file lists them, for messages.
        source: the file.
        label: the field by which messages name an entry.

    Raises:
        ValueError: an id is missing, no number or text, or belongs to two entries.
    """
    numbers: dict[int | str, int] = {}
    for number, entry in enumerate(entries):
        id_ = entry.get("id")
        if not is_id(id_):
            raise ValueError(
                f"{source}: {key}[{number}] ({label} {entry.get(label)!r}) must have a whole "
                f"number or a text as id, got {id_!r:.80}"
            )
        if id_ in numbers:
            first = entries[numbers[id_]]
            raise ValueError(
                f"{source}: two of the {key} have the id {id_!r}, {key}[{numbers[id_]}] ({label} "
                f"{first.get(label)!r}) and {key}[{number}] ({label} {entry.get(label)!r})"
            )
        numbers[id_] = number
    if len({isinstance(id_, str) for id_ in numbers}) > 1:
        raise ValueError(f"{source}: the ids of its {key} must be all numbers or all texts")
    whole = {id_ if isinstance(id_, str) else int(id_): n for id_, n in numbers.items()}
    return {id_: {**entries[whole[id_]], "id": id_} for id_ in sorted(whole)}


def _in_other_type(id_: int | float | str) -> int | str | None:
    if not isinstance(id_, str):
        return str(int(id_))
    try:
        return int(id_)
    except ValueError:
        return None


def find_id(entry: Entry, field: str, known: Collection[int | str], key: str) -> bool:
    """Whether an entry names one of those that the file lists.

    Args:
        entry: of which `field` is read.
        field: such as "image_id".
        known: ids of the file.
        key: under which the file lists them, for messages.

    Raises:
        ValueError: no id, or one of another type than the file's.
    """
    value = entry.get(field)
    if type(value) in (int, str, float) and value in known:
        return True
    if not is_id(value):
        raise ValueError(f"must have the id of one of the {key} as {field}, got {value!r:.80}")
    other = _in_other_type(value)
    if other in known:
        raise ValueError(
            f"has {_kind(value)} as {field}, {value!r}, but the {key} have {_kind(other)}, "
            f"{other!r}: ids must be of one type"
        )
    return False


def flag(entry: Entry, field: str) -> int:
    """0 or 1; 0 where the field is absent or null.

    Raises:
        ValueError: anything else.
    """
    value = entry.get(field)
    if value is None:
        return 0
    if isinstance(value, Real) and value in (0, 1):
        return int(value)
    raise ValueError(f"must have 0 or 1 as {field}, got {value!r:.80}")


def name_of(entry: Entry, field: str) -> str:
    """A text; numbers count as one.

    Raises:
        ValueError: none, or an empty one.
    """
    value = entry.get(field)
    if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
        return str(value)
    raise ValueError(f"must have a text as {field}, got {value!r:.80}")


def file_name_of(entry: Entry) -> str:
    """
    Raises:
        ValueError: none, or no text.
    """
    name = entry.get("file_name")
    if isinstance(name, str) and name:
        return name
    raise ValueError(f"must have a text as file_name, got {name!r:.80}")


def check_image(image: Entry) -> tuple[int, int]:
    """The (height, width) that an image is said to have.

    Raises:
        ValueError: not two positive whole numbers, or of more than 2^31 pixels.
    """
    size = image.get("height"), image.get("width")
    if not all(map(_is_whole, size)) or min(size) < 1 or size[0] * size[1] >= _MAX_PIXELS:
        raise ValueError(
            f"must have positive whole numbers as height and width, got {size[0]!r:.40} and "
            f"{size[1]!r:.40}"
        )
    return int(size[0]), int(size[1])


def note_shared_files(entries: Iterable[Entry], field: str, findings: Findings) -> None:
    """Tells of files that several entries name: each of them has but a part of what is there.

    Args:
        entries: with the file under `field`.
        field: such as "file_name".
        findings: get what is told.
    """
    first: dict[object, object] = {}
    for entry in entries:
        id_ = first.setdefault(entry[field], entry["image_id"])
        if id_ != entry["image_id"]:
            findings.add(_SHARED, f"{entry[field]} of the images {id_!r} and {entry['image_id']!r}")


def image_path(folder: str | Path, file_name: str) -> str:
    """Where the file that an entry names lies.

    Args:
        folder: of the images.
        file_name: relative to the folder, or absolute.

    Raises:
        ValueError: outside of the folder.
    """
    path = os.path.join(folder, file_name)  # noqa: PTH118 (Path would break URLs)
    if not Path(file_name).is_absolute() and ".." not in file_name:
        return path
    # Links may lead anywhere: names count, and where they differ what they really are.
    for resolve in (os.path.abspath, os.path.realpath):
        if "://" not in path and Path(resolve(path)).is_relative_to(resolve(folder)):
            return path
    raise ValueError(f"must have a file_name inside the folder {folder}, got {file_name!r}")
