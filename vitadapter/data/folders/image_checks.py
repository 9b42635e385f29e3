"""Images as their files are, compared with what a data set says of them, and with each other."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitadapter.data.dataset_source import counted, first_few, spread
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
    """An image as its file is.

    Attributes:
        path: of the file.
        digest: of its bytes; "" if there are none.
        fault: why it cannot be read; "" if it can.
        mode: see `ImageFacts`.
        rotated: see `ImageFacts`.
        other_size: whether it has another size than the data set says.
        channels: how many.
        sums: (2, channels), mean and mean square of each channel, if its channels are no colours.
    """

    path: str
    digest: str = ""
    fault: str = ""
    mode: str = ""
    rotated: bool = False
    other_size: bool = False
    channels: int = 3
    sums: np.ndarray | None = None


def _read(image: ListedImage) -> _ReadImage:
    """What a file holds."""
    digest = ""
    try:
        digest = hashlib.sha1(Path(image.path).read_bytes()).hexdigest()
        facts = image_facts(image.path)
        pixels = read_stored(image.path)
    except (OSError, ValueError) as error:
        return _ReadImage(image.path, digest, str(error))
    other = image.size is not None and facts.size != tuple(image.size)
    found = _ReadImage(image.path, digest, "", facts.mode, facts.rotated, other)
    if facts.mode != "channels":
        return found
    values = pixels.reshape(-1, pixels.shape[2])
    # Added up in float64, without a copy of the image in float64.
    squares = np.einsum("nc,nc->c", values, values, dtype=np.float64)
    sums = np.stack([values.mean(0, dtype=np.float64), squares / len(values)])
    return replace(found, channels=values.shape[1], sums=sums)


def _check_channels(report: CheckReport, read: Sequence[_ReadImage]) -> None:
    """Says what a model has to be told of images of the training whose channels are no colours."""
    if not any(one.sums is not None for one in read):
        return
    numbers = Counter(one.channels for one in read if not one.fault)
    if len(numbers) > 1:
        found = ", ".join(f"{counted(n, 'image')} of {c}" for c, n in sorted(numbers.items()))
        report.refusals.append(f"images of dataset.train differ in their channels: {found}")
        return
    mean, square = np.mean([one.sums for one in read if one.sums is not None], axis=0)
    # A channel that never changes has no deviation to divide by.
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    deviation[deviation == 0] = 1
    shown = (",".join(f"{value:.6g}" for value in values) for values in (mean, deviation))
    report.proposal += "\n\nchannels: 'model.pixel_mean=[{}]' 'model.pixel_std=[{}]'".format(*shown)


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
        if role == "train":
            _check_channels(report, read)
    both = digests["train"].keys() & digests["test"].keys()
    shared = {str(Path(digests["test"][digest]).resolve()) for digest in both}
    paths = [{str(Path(i.path).resolve()) for i in images[role]} for role in ROLES]
    shared |= paths[0] & paths[1]
    report.set("test", images_that_are_in_training_too=len(shared))
    if shared:
        much = len(shared) > _MAX_SHARED * len(paths[1])
        (report.refusals if much else report.warnings).append(
            f"dataset.train has {counted(len(shared), 'image')} of dataset.test "
            f"({first_few(sorted(shared))})"
        )


def _check_role(
    report: CheckReport, role: str, read: Sequence[_ReadImage], num_different: int
) -> None:
    modes = [one.mode for one in read]
    unreadable = [one.fault for one in read if one.fault]
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
    )
    for channels, count in sorted(Counter(o.channels for o in read if o.sums is not None).items()):
        line = f"images of {counted(channels, 'channel')} that are no colours"
        report.set(role, **{line: count})
    faults = {"unreadable image": unreadable, "image of another size than annotated": other_size}
    for what, found in faults.items():
        if found:
            report.refusals.append(
                f"{counted(len(found), what)} in dataset.{role} ({first_few(found)})"
            )
    if copies:
        report.warnings.append(f"dataset.{role} repeats {counted(copies, 'image')}")
