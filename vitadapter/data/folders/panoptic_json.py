"""COCO's panoptic files, with their images and maps anywhere in the folder."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from vitadapter.data.coco.json_entries import Entry, Id, by_id, checked_at, file_name_of, find_id
from vitadapter.data.dataset_source import first_few
from vitadapter.data.folders.coco_json import is_panoptic, place_of
from vitadapter.data.folders.found import FoundDataset, FoundImage, check_most
from vitadapter.data.folders.listing import Listing, split_of
from vitadapter.data.panoptic.annotations import PanopticClasses, read_panoptic_json

__all__ = ["panoptic_content", "panoptic_files", "read_panoptic_folder"]


def panoptic_files(listing: Listing) -> list[str]:
    """Files that show that the folder is in this format."""
    return [f for f in listing.named(".json") if is_panoptic(listing, f)]


def _map_place(listing: Listing, json_file: str, name: str) -> str | None:
    """Where a map lies: in the folder beside the json file that has its name, or anywhere."""
    beside = (PurePosixPath(json_file).with_suffix("") / name).as_posix()
    return beside if beside in listing.files else place_of(listing, json_file, name)


def _images(
    listing: Listing, json_file: str, content: Mapping[str, Sequence[Entry]], split: str | None
) -> list[FoundImage]:
    """The images of a file that have a map, both of which are in the folder."""
    source = str(listing.path(json_file))
    entries = by_id(content["images"], "images", source, "file_name")
    maps: list[tuple[Id, str | None]] = []
    for position, annotation in enumerate(content["annotations"]):
        where = f"{source}: annotations[{position}]"
        id_ = checked_at(where, find_id, annotation, "image_id", entries, "images")
        if id_ is None:
            raise ValueError(f"{where} has the unknown image_id {annotation['image_id']!r}")
        name = checked_at(where, file_name_of, annotation)
        maps.append((id_, _map_place(listing, json_file, name)))
    taken = {label for _, label in maps if label}
    found, missing = [], []
    for annotation, (id_, label) in zip(content["annotations"], maps, strict=True):
        entry = entries[id_]
        name = checked_at(f"{source}: image {id_!r}", file_name_of, entry)
        place = place_of(listing, json_file, name, taken)
        if label is None or place is None:
            missing.append(name if place is None else str(annotation["file_name"]))
        else:
            found.append(FoundImage(place, split, [dict(annotation)], dict(entry), label))
    check_most(
        f"images or maps that {json_file} names, but dataset.root lacks",
        missing,
        len(maps),
        "set another dataset.root=...",
    )
    return found


def read_panoptic_folder(listing: Listing) -> tuple[FoundDataset, PanopticClasses]:
    """Reads one json file per split, which its name or folder says.

    Raises:
        ValueError: a file contradicts itself, two files are of one split, other classes in another
            split, or images and maps that mostly do not exist.
    """
    images: list[FoundImage] = []
    known: dict[str | None, tuple[str, PanopticClasses]] = {}
    entries: Sequence[Entry] = ()
    for file in panoptic_files(listing):
        content, classes = read_panoptic_json(str(listing.path(file)))
        split = split_of(file, by_name=True)
        for other, (other_file, other_classes) in known.items():
            if split == other or None in (split, other):
                raise ValueError(
                    f"{other_file} and {file} must be of two splits: name them train and val, or "
                    f"leave one out by dataset.exclude=['{file}']"
                )
            if classes != other_classes:
                raise ValueError(
                    f"{other_file} and {file} must have the same categories, got "
                    f"{first_few(other_classes.names)} and {first_few(classes.names)}"
                )
        known[split] = (file, classes)
        entries = content["categories"]
        images += _images(listing, file, content, split)
    return FoundDataset("COCO panoptic", entries, images), classes


def panoptic_content(
    images: Sequence[FoundImage], categories: Sequence[Entry]
) -> dict[str, object]:
    """The content of a json file in COCO's panoptic format, with paths relative to the root."""
    return {
        "images": [{**image.entry, "file_name": image.file} for image in images],
        "annotations": [
            {**annotation, "file_name": image.label}
            for image in images
            for annotation in image.annotations or ()
        ],
        "categories": list(categories),
    }
