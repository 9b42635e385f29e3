"""Where a config says that a data set is: found by its name or its files, and checked at the start.

What cannot work is refused before a model is built, by a message that names the override to
change. The functions of `coco`, `panoptic` and `sem_seg` that configs instantiate check here, so
that the checks also hold under Detectron2's own training script.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from vitadapter.data.image_files import missing_files, read_record_image

__all__ = [
    "DatasetSource",
    "Record",
    "catalog_name",
    "check_num_classes",
    "expanded",
    "first_few",
    "refuse_root",
    "spread",
]

Record = dict[str, object]
"""An image in Detectron2's standard format."""

_ROLES = ("train", "test")
# A wrong folder or setting shows in nearly every image.
_NUM_IMAGES_READ = 10
# Where none of those can be read, one of the first so many must be.
_MAX_READ_ATTEMPTS = 100


def _is_remote(path: str) -> bool:
    return "://" in path


def expanded(path: str) -> str:
    """The path with `~` resolved; a URL as it is."""
    return path if _is_remote(path) else str(Path(path).expanduser())


def first_few(values: Sequence[object], limit: int = 3) -> str:
    """Values as a text, those beyond the limit as "..."."""
    return ", ".join([*map(str, values[:limit]), *(["..."] * (len(values) > limit))])


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """At most so many, evenly spread."""
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).astype(int)
    return [records[i] for i in chosen]


def catalog_name(label: str, paths: Iterable[str], *settings: object) -> str:
    """A name of Detectron2's catalogs that follows the paths, the state of files, and settings.

    A corrected file is a new data set: Detectron2 refuses new class names under an old name.
    """
    identity = [str(setting) for setting in settings]
    for path in map(Path, paths):
        identity.append(str(path.resolve()))
        if path.is_file():
            status = path.stat()
            identity += [str(status.st_mtime_ns), str(status.st_size)]
    return f"{label}_{hashlib.sha1('|'.join(identity).encode()).hexdigest()[:10]}"


def check_num_classes(found_in: str, found: int, num_classes: int) -> None:
    """
    Args:
        found_in: the subject of the message, and its verb.
        found: number of classes.
        num_classes: that the model predicts.

    Raises:
        ValueError: they differ.
    """
    if found != num_classes:
        raise ValueError(
            f"{found_in} {found} classes but the model predicts {num_classes}: "
            f"set dataset.num_classes={found}"
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
    """The settings `dataset.train.*` or `dataset.test.*`, as messages name them.

    Args:
        role: "train" or "test".
        keys: settings of the files and folders (`*_root`) that take the place of a name.

    Raises:
        ValueError: another role.
    """

    role: str
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise ValueError(f"role must be one of {_ROLES}, got {self.role!r}")

    @property
    def own_data(self) -> str:
        """What to set to use files in place of a name."""
        return " and ".join(f"dataset.{self.role}.{key}=..." for key in self.keys)

    def check_name(self, name: str, known: Collection[str]) -> None:
        """
        Raises:
            ValueError: not one of the known names.
        """
        if name in known:
            return
        near = get_close_matches(name, known, n=3)
        hint = f"near names: {', '.join(near)}" if near else f"known: {first_few([*known], 30)}"
        raise ValueError(
            f"dataset.{self.role}.name={name} is not a known data set ({hint}): set another "
            f"dataset.{self.role}.name, or {self.own_data}"
        )

    def check_parts(self, name: str, paths: Iterable[str | None], made: str = "") -> None:
        """
        Args:
            name: of a known data set.
            paths: of its files and folders; None for those that it does not have.
            made: how they come into being, for the message.

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
        """
        Args:
            paths: one for each of the keys.

        Returns:
            As :meth:`existing` returns them.

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
        """The path as :func:`expanded` returns it.

        Raises:
            ValueError: no such file or, for a key `*_root`, folder; URLs are taken to exist.
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
        """
        Args:
            records: of the data set.
            name: of the data set.
            settings: field of the records to the setting of the folder that its files are in.

        Raises:
            ValueError: files of a field do not exist.
        """
        for field, key in settings.items():
            missing = missing_files(str(record[field]) for record in records)
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
        inspect: Callable[[Mapping[str, object], np.ndarray], object] | None = None,
    ) -> None:
        """Reads some images, of which one at least must be readable: training skips the others.

        Args:
            records: of the data set.
            name: of the data set.
            inspect: is called with each record whose image is read, and the image in RGB.

        Raises:
            ValueError: none can be read; or what `inspect` raises.
        """
        errors: dict[str, str] = {}

        def is_usable(record: Record) -> bool:
            try:
                image = read_record_image(record, "RGB")
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
