"""Which images of a folder are trained on, and which are evaluated."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vitadapter.data.dataset_source import counted, first_few
from vitadapter.data.folders.found import FoundImage, check_most

__all__ = ["FolderSettings", "assign_splits", "labelled"]

logger = logging.getLogger(__name__)

_UNLABELLED = ("empty", "skip")


@dataclass(frozen=True)
class FolderSettings:
    """`dataset.*` that say how a folder is read.

    Args:
        exclude: patterns of files and folders to leave out.
        unlabelled: "empty" if images without a label file show no object, "skip" to leave them
            out; None takes them for empty, but refuses a data set that mostly consists of them.
        fraction: of the images of a split that is made for evaluation.
        seed: of that split.
        group: regular expression of paths; files for which it finds the same text (that of its
            first group, if it has one) get into the same split. None for no groups.

    Raises:
        ValueError: a value that cannot be.
    """

    exclude: tuple[str, ...] = ()
    unlabelled: str | None = None
    fraction: float = 0.2
    seed: int = 0
    group: str | None = None

    def __post_init__(self) -> None:
        if self.unlabelled not in (None, *_UNLABELLED):
            raise ValueError(
                f"dataset.unlabelled must be one of {', '.join(_UNLABELLED)} or null, got "
                f"{self.unlabelled!r}"
            )
        number = isinstance(self.fraction, int | float) and not isinstance(self.fraction, bool)
        if not number or not 0 < self.fraction < 1:
            raise ValueError(
                f"dataset.split.fraction must be between 0 and 1, got {self.fraction!r}"
            )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"dataset.split.seed must be an integer, got {self.seed!r}")
        if not all(isinstance(pattern, str) and pattern for pattern in self.exclude):
            raise ValueError(f"dataset.exclude must be a list of texts, got {self.exclude}")
        try:
            re.compile(self.group or "")
        except (re.error, TypeError) as error:
            raise ValueError(
                f"dataset.split.group must be a regular expression, got {self.group!r} ({error})"
            ) from error


def assign_splits(
    images: Sequence[FoundImage], settings: FolderSettings
) -> dict[str, list[FoundImage]]:
    """The images of `dataset.train` and `dataset.test`.

    The split "val" is evaluated, or "test" where there is no "val". Where neither exists, a part
    of the images is taken from training: that with the lowest hashes of their names, so that it
    depends on names, fraction and seed alone.

    Raises:
        ValueError: no split for training, or too few images to make one for evaluation.
    """
    counts = Counter(image.split for image in images)
    if set(counts) - {None} and None in counts:
        stray = [image.file for image in images if image.split is None]
        logger.warning(
            "%s of dataset.root in no split, left out (%s)",
            counted(len(stray), "image"),
            first_few(stray),
        )
    by_split: dict[str, list[FoundImage]] = {"train": [], "val": [], "test": []}
    for image in images:
        if image.split is not None:
            by_split[image.split].append(image)
    train = by_split["train"] if set(counts) - {None} else list(images)
    if not train:
        raise ValueError(
            "dataset.root has no images for training, only the splits "
            f"{', '.join(sorted(s for s in counts if s))}: name the folder of the others train"
        )
    held_out = next((s for s in ("val", "test") if by_split[s]), None)
    if held_out is not None:
        if replace(settings, exclude=(), unlabelled=None) != FolderSettings():
            logger.warning(
                "dataset.split has no effect, since dataset.root has the split %s", held_out
            )
        return {"train": train, "test": by_split[held_out]}
    return _divided(train, settings)


def _group_of(file: str, pattern: str | None) -> str:
    match = None if pattern is None else re.search(pattern, file)
    if match is None:
        return file
    return match[1] or "" if match.re.groups else match[0]


def _divided(images: Sequence[FoundImage], settings: FolderSettings) -> dict[str, list[FoundImage]]:
    """Images for training and, up to the fraction, for evaluation; groups stay together."""
    if settings.group and not any(re.search(settings.group, image.file) for image in images):
        raise ValueError(
            f"dataset.split.group={settings.group} fits no file, such as {images[0].file}"
        )
    groups = {image.file: _group_of(image.file, settings.group) for image in images}

    def rank(group: str) -> str:
        text = f"{settings.seed}:{group}".encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).hexdigest()

    wanted = max(1, round(settings.fraction * len(images)))
    sizes = Counter(groups.values())
    chosen: set[str] = set()
    count = 0
    for group in sorted(sizes, key=rank)[:-1]:  # one must be left for training
        if count == 0 or count + sizes[group] <= wanted:
            chosen.add(group)
            count += sizes[group]
    if not chosen:
        raise ValueError(
            "dataset.root has no split for evaluation, and what stays together "
            f"({first_few(sorted(sizes))}) cannot be divided: add images in a folder named val"
        )
    logger.warning(
        "dataset.root has no split for evaluation: %d of %d images are held out "
        "(dataset.split.fraction=%g, seed=%d)",
        count,
        len(images),
        settings.fraction,
        settings.seed,
    )
    return {
        "train": [image for image in images if groups[image.file] not in chosen],
        "test": [image for image in images if groups[image.file] in chosen],
    }


def labelled(images: Sequence[FoundImage], settings: FolderSettings, role: str) -> list[FoundImage]:
    """Without the images that have no label file, or with them as images without objects.

    Raises:
        ValueError: they are more than half, and the settings do not say what they are.
    """
    without = [image.file for image in images if image.annotations is None]
    if settings.unlabelled is None:
        check_most(
            f"images of dataset.{role} without a label file, taken for images without objects",
            without,
            len(images),
            "set dataset.unlabelled=empty if that is so, or dataset.unlabelled=skip to leave them "
            "out",
        )
    elif without:
        done = "left out" if settings.unlabelled == "skip" else "taken for images without objects"
        logger.warning(
            "%d of %d images of dataset.%s without a label file, %s (dataset.unlabelled=%s)",
            len(without),
            len(images),
            role,
            done,
            settings.unlabelled,
        )
    if settings.unlabelled == "skip":
        return [image for image in images if image.annotations is not None]
    return list(images)
