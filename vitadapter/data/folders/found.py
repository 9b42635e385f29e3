"""What the readers of a folder find, and what all formats have in common from there on."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vitadapter.data.coco.annotations import Category, distinct
from vitadapter.data.coco.json_entries import Entry, Findings
from vitadapter.data.dataset_source import counted, first_few
from vitadapter.data.folders.listing import ImageFacts, Listing

__all__ = [
    "FoundDataset",
    "FoundImage",
    "categories",
    "check_most",
    "coco_content",
    "fault_of",
    "numbered",
    "polygons_object",
    "raise_faults",
    "with_sizes",
]

logger = logging.getLogger(__name__)


@dataclass
class FoundImage:
    """An image of the folder.

    Attributes:
        file: path relative to the root.
        split: "train", "val", "test", or None where the folder does not say.
        annotations: in COCO's format, with a class as "category_id"; None without a label file.
        entry: what COCO's format says of an image, such as "height" and "width".
        label: path of its label map relative to the root, if it has one.
    """

    file: str
    split: str | None = None
    annotations: list[dict[str, object]] | None = None
    entry: dict[str, object] = field(default_factory=dict)
    label: str | None = None


@dataclass
class FoundDataset:
    """The images and classes of a folder.

    Attributes:
        kind: of the format, for messages.
        categories: in COCO's format.
        images: in the order of their paths.
        as_it_is: json file and folder of images of each split that COCO's own loader can take.
    """

    kind: str
    categories: Sequence[Entry]
    images: list[FoundImage]
    as_it_is: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        """In the order of the class numbers."""
        return [str(category["name"]) for category in self.categories]


def fault_of(listing: Listing, file: str, error: ValueError) -> str:
    """What is wrong with a file of the listing, with its name once: some errors have it already."""
    text = str(error).replace(str(listing.path(file)), file)
    return text if text.startswith(file) else f"{file} {text}"


def raise_faults(kind: str, faults: Sequence[str]) -> None:
    """
    Raises:
        ValueError: there are faults of label files; names the first ones.
    """
    if faults:
        raise ValueError(
            f"{counted(len(faults), 'fault')} in the {kind} files of dataset.root: "
            f"{first_few(faults)}. Correct them, or leave files out by dataset.exclude=[...]"
        )


def check_most(what: str, affected: Sequence[str], total: int, remedy: str) -> None:
    """Warns of files that training will do without; refuses if they are more than half.

    Args:
        what: they are, after "N of M ", such as "label files without an image".
        affected: the files.
        total: number of files.
        remedy: for the message.

    Raises:
        ValueError: more than half are affected.
    """
    if 2 * len(affected) > total:
        raise ValueError(f"{len(affected)} of {total} {what} ({first_few(affected)}): {remedy}")
    if affected:
        logger.warning("%d of %d %s (%s)", len(affected), total, what, first_few(affected))


def with_sizes(listing: Listing, images: Sequence[FoundImage]) -> list[FoundImage]:
    """The images with "height" and "width" of their headers.

    Raises:
        ValueError: one cannot be read; names the first ones.
    """
    unreadable = {}
    for image, facts in zip(
        images, listing.image_facts(image.file for image in images), strict=True
    ):
        if isinstance(facts, ImageFacts):
            image.entry["height"], image.entry["width"] = facts.size
        else:
            unreadable[image.file] = str(facts)
    if unreadable:
        files = first_few([f"'{file}'" for file in unreadable])
        raise ValueError(
            f"{counted(len(unreadable), 'unreadable image')} of {len(images)} in dataset.root "
            f"({first_few([*unreadable.values()])}): delete such images, or set "
            f"dataset.exclude=[{files}]"
        )
    return list(images)


def polygons_object(polygons: Sequence[Sequence[float]]) -> dict[str, object]:
    """Box, area and mask of an object that consists of polygons [x1, y1, x2, y2, ...]."""
    x = [value for polygon in polygons for value in polygon[0::2]]
    y = [value for polygon in polygons for value in polygon[1::2]]
    area = sum(_area(polygon) for polygon in polygons)
    box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    return {"bbox": box, "area": area, "segmentation": [list(p) for p in polygons]}


def _area(polygon: Sequence[float]) -> float:
    x, y = polygon[0::2], polygon[1::2]
    pairs = zip(x, y, [*x[1:], x[0]], [*y[1:], y[0]], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for x0, y0, x1, y1 in pairs)) / 2


def numbered(kind: str, images: Sequence[FoundImage], names: Sequence[str] | None) -> FoundDataset:
    """A data set whose objects tell their class by its name.

    Args:
        kind: of the format.
        images: with names as "category_id".
        names: of the classes, in the order of their numbers; None takes those that occur, in
            alphabetical order.

    Raises:
        ValueError: there are names, but an object has another one.
    """
    found: dict[str, str] = {}
    trained: set[str] = set()
    for image in images:
        for annotation in image.annotations or ():
            found.setdefault(str(annotation["category_id"]), image.file)
            if image.split in (None, "train"):
                trained.add(str(annotation["category_id"]))
    strangers = [name for name in found if names is not None and name not in names]
    if strangers:
        raise ValueError(
            f"an object of {found[strangers[0]]} has the class {strangers[0]!r}, which is none of "
            f"the {counted(len(names or ()), 'class')} that the folder names "
            f"({first_few(names or (), 10)})"
        )
    if names is None and trained != set(found):
        untrained = sorted(set(found) - trained)
        logger.warning(
            "%s of other splits that training lacks (%s): is a name misspelt?",
            counted(len(untrained), "class"),
            first_few(untrained, 10),
        )
    names = sorted(found) if names is None else names
    ids = {name: number for number, name in enumerate(names, start=1)}
    for image in images:
        for annotation in image.annotations or ():
            annotation["category_id"] = ids[str(annotation["category_id"])]
    return FoundDataset(kind, categories(names), list(images))


def categories(names: Iterable[str]) -> list[Category]:
    """COCO's entries of classes, numbered from 1, with names of their own."""
    entries: list[Category] = [{"id": n, "name": name} for n, name in enumerate(names, start=1)]
    findings = Findings()
    entries = distinct(entries, findings)
    findings.warn(logger, "dataset.root")
    return entries


def coco_content(images: Sequence[FoundImage], categories: Sequence[Entry]) -> dict[str, object]:
    """The content of a json file in COCO's instances format, with paths relative to the root."""
    entries: list[Entry] = []
    annotations: list[Entry] = []
    for number, image in enumerate(images, start=1):
        entry: Entry = {"id": number, **image.entry, "file_name": image.file}
        entries.append(entry)
        for annotation in image.annotations or ():
            identity = {"id": len(annotations) + 1, "image_id": entry["id"], "iscrowd": 0}
            annotations.append({**identity, **annotation})
    return {"images": entries, "annotations": annotations, "categories": list(categories)}
