"""What COCO's json formats have in common: lists of entries with ids, images, and flags.

Each function refuses what cannot be right with a `ValueError` that names the file and the entry.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from logging import Logger
from numbers import Integral, Real
from pathlib import Path
from typing import TypeGuard, TypeVar, cast

from detectron2.utils.file_io import PathManager

__all__ = [
    "Findings",
    "by_id",
    "check_image",
    "checked_at",
    "file_name_of",
    "find_id",
    "flag",
    "image_path",
    "is_id",
    "listed",
    "name_of",
    "note_shared_files",
    "read_json",
]

Entry = Mapping[str, object]
Id = int | str
T = TypeVar("T")

# The limit of an image, so that pycocotools can count them with 32 bits.
_MAX_PIXELS = 2**31
_SHARED = "files belong to several image ids, each of which has its own annotations"
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
    """What a reader mends or leaves out: each kind is counted and logged in one warning."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, kind: str, example: str) -> None:
        """Counts a finding.

        Args:
            kind: what was done, or found, in the plural.
            example: where; the warning has the first example of a kind.
        """
        self._counts[kind] += 1
        self._examples.setdefault(kind, example)

    def warn(self, logger: Logger, source: str) -> None:
        """Logs one warning for each kind."""
        for kind, count in self._counts.items():
            such_as = "such as" if count > 1 else "namely"
            logger.warning("%s: %s: %d, %s %s", source, kind, count, such_as, self._examples[kind])


def checked_at(where: str, function: Callable[..., T], *arguments: object) -> T:
    """Calls a function; `where` precedes the message of a `ValueError` that it raises."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from error


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A json object. If a key has two values, Python alone would keep only the last one."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {key!r} more than once")
    return entry


def read_json(json_file: str | Path) -> object:
    """Reads a json file, with or without a byte order mark.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not json, or an object has a key twice; names the file.
    """
    with PathManager.open(str(json_file), "rb") as file:
        content = file.read()
    try:
        # From bytes, json detects the encoding by itself.
        return json.loads(content, object_pairs_hook=_unique_keys)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{json_file} is not json ({error})") from error
    except ValueError as error:  # raised for an object or a number in it
        raise ValueError(f"{json_file}: {error}") from error


def listed(
    content: object, key: str, source: str, *, may_be_empty: bool = False
) -> Sequence[Entry]:
    """The entries under a key of a file. They must be a list of objects."""
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


def _is_whole(value: object) -> TypeGuard[int]:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_id(value: object) -> TypeGuard[Id]:
    """Whether it can be the id of an image or a category: a whole number (or 1.0) or a text."""
    if isinstance(value, str):
        return value != ""
    return _is_whole(value) and -(2**63) <= value < 2**63


def by_id(
    entries: Sequence[Entry], key: str, source: str, label: str
) -> dict[Id, dict[str, object]]:
    """Copies of entries in the order of their ids.

    Args:
        entries: with "id".
        key: under which the file lists them, for messages.
        source: the file.
        label: the field by which messages name an entry.

    Raises:
        ValueError: an id is missing, neither a number nor a text, or belongs to two entries.
    """
    numbers: dict[Id, int] = {}
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


def _in_other_type(id_: Id) -> Id | None:
    if not isinstance(id_, str):
        return str(int(id_))
    try:
        return int(id_)
    except ValueError:
        return None


def find_id(entry: Entry, field: str, known: Collection[Id], key: str) -> Id | None:
    """The id that an entry refers to; None if the file does not list it.

    Args:
        entry: whose `field` is read.
        field: such as "image_id".
        known: ids of the file.
        key: under which the file lists them, for messages.

    Raises:
        ValueError: it is not an id, or has a different type from the file's ids.
    """
    value = entry.get(field)
    if type(value) in (int, str, float) and value in known:
        return int(value) if isinstance(value, float) else cast(Id, value)
    if not is_id(value):
        raise ValueError(f"must have the id of one of the {key} as {field}, got {value!r:.80}")
    other = _in_other_type(value)
    if other in known:
        raise ValueError(
            f"has {_kind(value)} as {field}, {value!r}, but the {key} have {_kind(other)}, "
            f"{other!r}: ids must be of one type"
        )
    return None


def flag(entry: Entry, field: str) -> int:
    """A field that is 0 or 1; 0 if it is missing or null."""
    value = entry.get(field)
    if value is None:
        return 0
    if isinstance(value, Real) and value in (0, 1):
        return int(value == 1)
    raise ValueError(f"must have 0 or 1 as {field}, got {value!r:.80}")


def name_of(entry: Entry, field: str) -> str:
    """A field that is a text, which is not empty; a number counts as one."""
    value = entry.get(field)
    if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
        return str(value)
    raise ValueError(f"must have a text as {field}, got {value!r:.80}")


def file_name_of(entry: Entry) -> str:
    """The "file_name" of an entry, a text that is not empty."""
    name = entry.get("file_name")
    if isinstance(name, str) and name:
        return name
    raise ValueError(f"must have a text as file_name, got {name!r:.80}")


def check_image(image: Entry) -> tuple[int, int]:
    """The (height, width) that the file states for an image.

    Raises:
        ValueError: they are not two positive whole numbers, or the image has 2^31 pixels or more.
    """
    height, width = image.get("height"), image.get("width")
    if not _is_whole(height) or not _is_whole(width) or min(height, width) < 1:
        raise ValueError(
            f"must have positive whole numbers as height and width, got {height!r:.40} and "
            f"{width!r:.40}"
        )
    if height * width >= _MAX_PIXELS:
        raise ValueError(f"must have fewer than 2^31 pixels, got {height} x {width}")
    return int(height), int(width)


def note_shared_files(entries: Iterable[Entry], field: str, findings: Findings) -> None:
    """Notes files that several entries name, each of which has only a part of the annotations.

    Args:
        entries: with the file under `field`.
        field: such as "file_name".
        findings: to which they are added.
    """
    first: dict[object, object] = {}
    for entry in entries:
        id_ = first.setdefault(entry[field], entry["image_id"])
        if id_ != entry["image_id"]:
            findings.add(_SHARED, f"{entry[field]} of the images {id_!r} and {entry['image_id']!r}")


def image_path(folder: str | Path, file_name: str) -> str:
    """The path of the file that an entry names.

    Args:
        folder: of the images.
        file_name: relative to the folder, or absolute.

    Raises:
        ValueError: it is outside the folder.
    """
    path = os.path.join(folder, file_name)  # noqa: PTH118 (Path would break URLs)
    if not Path(file_name).is_absolute() and ".." not in file_name:
        return path
    # Links may lead anywhere, so names count first. If these differ, the resolved paths count.
    for resolve in (os.path.abspath, os.path.realpath):
        if "://" not in path and Path(resolve(path)).is_relative_to(resolve(folder)):
            return path
    raise ValueError(f"must have a file_name inside the folder {folder}, got {file_name!r}")
