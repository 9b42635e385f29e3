"""Images as their files are, compared with what a data set says of them, and with each other."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vitadapter.data.dataset_source import first_few, spread
from vitadapter.data.folders.listing import image_facts
from vitadapter.data.folders.report import ROLES, CheckReport
from vitadapter.data.image_files import read_stored

__all__ = ["ListedImage", "check_images"]

_NUM_READERS = 4
# Of the test images, that may be in the training data too.
_MAX_SHARED = 0.01


@dataclass(frozen=True)
class ListedImage:
    """An image as a data set has it.

    Attributes:
        path: of the file.
        size: (height, width) that the data set gives; None if it gives none.
    """

    path: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class _ReadImage:
    """An image as its file is."""

    path: str
    digest: str = ""
    mode: str = ""
    rotated: bool = False
    other_size: bool = False


def _read(image: ListedImage) -> _ReadImage:
    """What a file holds; without a mode where it cannot be read."""
    digest = ""
    try:
        digest = hashlib.sha1(Path(image.path).read_bytes()).hexdigest()
        facts = image_facts(image.path)
        read_stored(image.path)
    except (OSError, ValueError):
        return _ReadImage(image.path, digest)
    other = image.size is not None and facts.size != tuple(image.size)
    return _ReadImage(image.path, digest, facts.mode, facts.rotated, other)


def check_images(
    report: CheckReport, images: Mapping[str, Sequence[ListedImage]], limit: int | None
) -> None:
    """Reads images, at most a number of evenly spread ones of each role.

    Args:
        report: gets what is found.
        images: of each role.
        limit: largest number; None for all.
    """
    digests: dict[str, dict[str, str]] = {}
    for role, listed in images.items():
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            read = list(readers.map(_read, spread(listed, limit or len(listed))))
        digests[role] = {one.digest: one.path for one in read if one.digest}
        _check_role(report, role, read, len(digests[role]))
    both = digests["train"].keys() & digests["test"].keys()
    shared = {str(Path(digests["test"][digest]).resolve()) for digest in both}
    paths = [{str(Path(i.path).resolve()) for i in images[role]} for role in ROLES]
    shared |= paths[0] & paths[1]
    report.set("test", images_that_are_in_training_too=len(shared))
    if shared:
        text = f"{len(shared)} images of dataset.test are in dataset.train too"
        much = len(shared) > _MAX_SHARED * len(paths[1])
        (report.refusals if much else report.warnings).append(
            f"{text} ({first_few(sorted(shared))})"
        )


def _check_role(
    report: CheckReport, role: str, read: Sequence[_ReadImage], num_different: int
) -> None:
    modes = [one.mode for one in read]
    unreadable = [one.path for one in read if not one.mode]
    other_size = [one.path for one in read if one.other_size]
    copies = sum(bool(one.digest) for one in read) - num_different
    report.set(
        role,
        images_read=len(read),
        unreadable_images=len(unreadable),
        images_of_another_size_than_annotated=len(other_size),
        copies_of_another_image=copies,
        images_rotated_by_EXIF_data=sum(one.rotated for one in read),
        images_of_16_or_32_bits=sum(mode.startswith("I") for mode in modes),
        images_of_floats=modes.count("F"),
        CMYK_images=modes.count("CMYK"),
        images_of_channels_that_are_no_colours=modes.count("channels"),
    )
    faults = {"cannot be read": unreadable, "have another size than annotated": other_size}
    for what, paths in faults.items():
        if paths:
            # Training skips them, evaluation cannot.
            wrong = role == "test" or len(paths) == len(read)
            (report.refusals if wrong else report.warnings).append(
                f"{len(paths)} images of dataset.{role} {what} ({first_few(paths)})"
            )
    if copies:
        report.warnings.append(f"{copies} images of dataset.{role} are copies of others")
