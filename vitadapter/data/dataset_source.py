"""Finds a data set by its name or its files, as a config gives them, and checks it at the start.

What cannot work is refused before a model is built, with a message that names the override to
change. The functions of `coco`, `panoptic` and `sem_seg` that configs instantiate make these
checks, so that they also hold under Detectron2's own training script.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
from detectron2.structures import BoxMode

from vitadapter.data.image_files import missing_files, read_record_image

__all__ = [
    "Annotation",
    "DatasetSource",
    "Record",
    "Segment",
    "catalog_name",
    "check_num_classes",
    "expanded",
    "first_few",
    "refuse_root",
    "spread",
]


class Annotation(TypedDict, total=False):
    """An object of an image in Detectron2's standard format."""

    bbox: Sequence[float]
    bbox_mode: BoxMode
    category_id: int
    iscrowd: int
    area: float
    segmentation: list[Sequence[float]] | dict[str, object]


class Segment(TypedDict, total=False):
    """A segment of a panoptic map in Detectron2's standard format."""

    id: int
    category_id: int
    isthing: bool
    iscrowd: int


class Record(TypedDict, total=False):
    """An image in Detectron2's standard format."""

    file_name: str
    height: int
    width: int
    image_id: int | str
    annotations: list[Annotation]
    sem_seg_file_name: str
    pan_seg_file_name: str
    segments_info: list[Segment]
    # Of LVIS
    neg_category_ids: list[int | str]
    not_exhaustive_category_ids: list[int | str]


T = TypeVar("T")

_ROLES = ("train", "test")
# A wrong folder or setting affects nearly every image.
_NUM_IMAGES_READ = 10
# If none of those can be read, one of this many first images must be readable.
_MAX_READ_ATTEMPTS = 100


def _is_remote(path: str) -> bool:
    return "://" in path


def expanded(path: str) -> str:
    """The path with `~` resolved; a URL as it is."""
    return path if _is_remote(path) else str(Path(path).expanduser())


def first_few(values: Sequence[object], limit: int = 3) -> str:
    """The first values as a text, followed by "..." if there are more."""
    return ", ".join([*map(str, values[:limit]), *(["..."] * (len(values) > limit))])


def counted(number: int, noun: str) -> str:
    """A number and its noun, such as "1 image" and "2 classes"."""
    if number != 1:
        noun += "es" if noun.endswith(("s", "x")) else "s"
    return f"{number} {noun}"


def spread(values: Sequence[T], count: int) -> list[T]:
    """At most `count` of the values, evenly spread."""
    chosen = np.linspace(0, len(values) - 1, min(count, len(values))).astype(int)
    return [values[i] for i in chosen]


def catalog_name(label: str, paths: Iterable[str], *settings: object) -> str:
    """A name for Detectron2's catalogs that depends on paths, the state of files, and settings.

    A corrected file gets a new name, because Detectron2 refuses new class names under an old one.
    """
    identity = [str(setting) for setting in settings]
    for path in map(Path, paths):
        identity.append(str(path.resolve()))
        if path.is_file():
            status = path.stat()
            identity += [str(status.st_mtime_ns), str(status.st_size)]
    return f"{label}_{hashlib.sha1('|'.join(identity).encode()).hexdigest()[:10]}"


def check_num_classes(found_in: str, found: int, num_classes: int, advice: str = "") -> None:
    """Refuses data whose number of classes is not the model's.

    Args:
        found_in: subject and verb of the message.
        found: number of classes of the data.
        num_classes: number of classes that the model predicts.
        advice: end of the message.

    Raises:
        ValueError: they differ.
    """
    if found != num_classes:
        raise ValueError(
            f"{found_in} {found} classes but the model predicts {num_classes}: "
            f"set dataset.num_classes={found}{advice}"
        )


def refuse_root(root: str | None) -> None:
    """Refuses a folder whose meaning a script has not asked for (`folders.config.resolve_root`).

    Raises:
        ValueError: there is one; Detectron2's own script would ignore it.
    """
    if root is not None:
        raise ValueError(
            f"dataset.root={root} is known to vitadapter's own scripts alone, such as "
            "scripts/lazyconfig_train_net.py: use them, or set the files of dataset.train and "
            "dataset.test and dataset.num_classes, as their log says"
        )


@dataclass(frozen=True)
class DatasetSource:
    """The settings `dataset.train.*` or `dataset.test.*`, which messages name.

    Args:
        role: "train" or "test".
        keys: settings of the files and folders (`*_root`) that replace the name of a data set.

    Raises:
        ValueError: `role` is neither of them.
    """

    role: str
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise ValueError(f"role must be one of {_ROLES}, got {self.role!r}")

    @property
    def own_data(self) -> str:
        """What to set in order to use files instead of a name."""
        return " and ".join(f"dataset.{self.role}.{key}=..." for key in self.keys)

    def check_name(self, name: str, known: Collection[str]) -> None:
        """Refuses an unknown name.

        Raises:
            ValueError: `name` is not one of the known names.
        """
        if name in known:
            return
        near = get_close_matches(name, known, n=3)
        hint = f"similar names: {', '.join(near)}" if near else f"known: {first_few([*known], 30)}"
        raise ValueError(
            f"dataset.{self.role}.name={name} is not a known data set ({hint}): set another "
            f"dataset.{self.role}.name, or {self.own_data}"
        )

    def check_parts(self, name: str, paths: Iterable[str | None], made: str = "") -> None:
        """Refuses a known data set whose files do not exist.

        Args:
            name: of the data set.
            paths: of its files and folders; None for those that it does not have.
            made: how they are made, for the message.

        Raises:
            ValueError: one of them does not exist.
        """
        for path in paths:
            if path and not _is_remote(path) and not Path(path).exists():
                raise ValueError(
                    f"{path}, a part of the data set '{name}', does not exist{made}: set the "
                    "environment variable DETECTRON2_DATASETS to the folder that holds it, or "
                    f"{self.own_data}"
                )

    def own_files(self, *paths: str | None) -> tuple[str, ...]:
        """The paths of a user's own data set.

        Args:
            paths: one for each of the keys.

        Returns:
            The paths as `existing` returns them.

        Raises:
            ValueError: one is not given, or does not exist.
        """
        given = dict(zip(self.keys, paths, strict=True))
        for key, path in given.items():
            if not path:
                raise ValueError(
                    f"a data set of your own needs {self.own_data}: "
                    f"set dataset.{self.role}.{key}=..."
                )
        return tuple(self.existing(key, str(path)) for key, path in given.items())

    def existing(self, key: str, path: str) -> str:
        """The path as `expanded` returns it.

        Raises:
            ValueError: there is no such file or, for a key `*_root`, no such folder. URLs are
                assumed to exist.
        """
        path = expanded(path)
        is_folder = key.endswith("_root")
        found = Path(path).is_dir() if is_folder else Path(path).is_file()
        if not found and not _is_remote(path):
            raise ValueError(
                f"the {'folder' if is_folder else 'file'} {path} does not exist: "
                f"set dataset.{self.role}.{key}=..."
            )
        return path

    def check_files(self, records: Sequence[Record], name: str, **settings: str) -> None:
        """Refuses records whose files do not exist.

        Args:
            records: of the data set.
            name: of the data set.
            settings: for each field that names files, the setting of their folder.

        Raises:
            ValueError: files of a field do not exist.
        """
        for field, key in settings.items():
            missing = missing_files(str(dict(record)[field]) for record in records)
            if missing:
                what = "images" if field == "file_name" else "maps"
                raise ValueError(
                    f"{len(missing)} of the {len(records)} {what} of '{name}' do not exist "
                    f"({first_few(missing)}): set dataset.{self.role}.{key}=... to the folder "
                    "that holds them"
                )

    def check_images(
        self,
        records: Sequence[Record],
        name: str,
        inspect: Callable[[Record, np.ndarray], object] | None = None,
    ) -> None:
        """Reads some images. At least one must be readable, because training skips the others.

        Args:
            records: of the data set.
            name: of the data set.
            inspect: called with each record whose image can be read, and the image in RGB
                or, if its file has no colours, with all channels.

        Raises:
            ValueError: none can be read, or `inspect` raises it.
        """
        errors: dict[str, str] = {}

        def is_usable(record: Record) -> bool:
            try:
                image = read_record_image(record, None)
            except ValueError as error:
                errors[str(record["file_name"])] = str(error)
                return False
            if inspect is not None:
                inspect(record, image)
            return True

        usable = [is_usable(record) for record in spread(records, _NUM_IMAGES_READ)]
        if not any(usable) and not any(map(is_usable, records[:_MAX_READ_ATTEMPTS])):
            raise ValueError(
                f"none of the {len(errors)} images of '{name}' that were tried can be used "
                f"({first_few([*errors.values()])}): set dataset.{self.role}.image_root=..."
            )
