"""COCO's instances files, with their images anywhere in the folder."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import cast
from unicodedata import normalize

from vitadapter.data.coco.annotations import CocoData, parse_coco
from vitadapter.data.coco.json_entries import Entry, Id, find_id, read_json
from vitadapter.data.dataset_source import first_few
from vitadapter.data.folders.found import (
    FoundDataset,
    FoundImage,
    check_most,
)
from vitadapter.data.folders.listing import Listing, split_of

__all__ = ["coco_files", "is_panoptic", "place_of", "read_coco_folder"]

# Not "categories" alone: Label Studio's YOLO export lists them in a notes.json.
_LISTS = re.compile(rb'"(?:images|annotations)"\s*:\s*\[')
_KEYS = {"images", "annotations", "categories"}


def is_panoptic(listing: Listing, file: str) -> bool:
    """Whether a json file is one of COCO's panoptic segments; its list may begin far behind."""
    named = PurePosixPath(file).name.startswith("panoptic_")
    return named or b'"segments_info"' in listing.head(file)


def coco_files(listing: Listing) -> list[str]:
    """Files that show that the folder is in this format."""
    files = [f for f in listing.named(".json") if not is_panoptic(listing, f)]
    named = [f for f in files if PurePosixPath(f).name.startswith(("instances_", "lvis_v1_"))]
    return [f for f in named or files if _LISTS.search(listing.head(f))]


def _is_instances(content: object) -> bool:
    """Whether a file is one of COCO's instances, not of its captions or panoptic segments."""
    if not isinstance(content, Mapping) or not set(content) >= _KEYS:
        return False
    annotations = content["annotations"]
    first = annotations[0] if isinstance(annotations, list) and annotations else {}
    return not (isinstance(first, Mapping) and {"segments_info", "caption"} & set(first))


@dataclass(frozen=True)
class _SplitFile:
    """A json file, and the images of the folder that it names."""

    file: str
    content: Mapping[str, Sequence[Entry]]
    data: CocoData
    places: dict[str, str]
    """From "file_name" to the path relative to the root; without files that do not exist."""

    @property
    def names(self) -> dict[Id, str]:
        """The "file_name" of each image id."""
        return {record["image_id"]: str(record["file_name"]) for record in self.data.records}

    def image_root(self) -> str | None:
        """The folder, relative to the root, that all names of the file are relative to."""
        roots = set()
        for record in self.data.records:
            name = str(record["file_name"])
            place = self.places.get(name)
            if place is None or not f"/{place}".endswith(f"/{name}"):
                return None
            roots.add(place[: len(place) - len(name)])
        return roots.pop() if len(roots) == 1 else None


def place_of(
    listing: Listing, json_file: str, name: str, taken: Collection[str] = ()
) -> str | None:
    """Where in the folder an image lies: below the json file, or that of the longest equal end.

    Args:
        listing: the folder.
        json_file: that names the image.
        name: as the file has it.
        taken: files that are no images.

    Raises:
        ValueError: several images fit equally well.
    """
    name = name.replace("\\", "/")
    beside = PurePosixPath(json_file).parent / name
    if beside.as_posix() in listing.files and beside.as_posix() not in taken:
        return beside.as_posix()
    parts = PurePosixPath(normalize("NFC", name)).parts
    if not parts:
        return None
    alike = listing.images_by_name.get(parts[-1], ())
    found = [PurePosixPath(f) for f in alike if f not in taken]
    split = split_of(json_file, by_name=True)
    if len(found) > 1 and split is not None:
        found = [f for f in found if split_of(f.as_posix()) == split] or found
    if len(found) > 1:
        equal = [_equal_end(f.parts, parts) for f in found]
        found = [f for f, n in zip(found, equal, strict=True) if n == max(equal)]
    if len(found) > 1:
        raise ValueError(
            f"{json_file}: the image {name} may be {found[0]} or {found[1]}: leave one out by "
            f"dataset.exclude=['{found[1]}']"
        )
    return found[0].as_posix() if found else None


def _equal_end(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if normalize("NFC", a) != b:
            break
        count += 1
    return count


def _split_file(listing: Listing, file: str, content: object) -> _SplitFile:
    data = parse_coco(content, str(listing.path(file)))
    names = [str(record["file_name"]) for record in data.records]
    places = {name: place for name in names if (place := place_of(listing, file, name))}
    check_most(
        f"images that {file} names, but dataset.root lacks",
        [name for name in names if name not in places],
        len(names),
        "set dataset.root=... to the folder that holds images and json files",
    )
    # `parse_coco` has checked it.
    return _SplitFile(file, cast(Mapping[str, Sequence[Entry]], content), data, places)


def _by_split(listing: Listing) -> dict[str | None, _SplitFile]:
    found: dict[str | None, _SplitFile] = {}
    # An empty file is one that was to be written, or downloaded.
    empty = [f for f in listing.named(".json") if listing.files[f][0] == 0]
    for file in [*coco_files(listing), *empty]:
        content = read_json(listing.path(file))
        if not _is_instances(content):
            continue
        split = split_of(file, by_name=True)
        if split in found:
            raise ValueError(
                f"{found[split].file} and {file} are both annotations of the split "
                f"{split or 'that has no name'}: name them train and val, or leave one out by "
                f"dataset.exclude=['{file}']"
            )
        found[split] = _split_file(listing, file, content)
    if not found:
        raise ValueError(
            f"none of the json files in dataset.root has COCO's keys {', '.join(sorted(_KEYS))}"
        )
    return found


def _images(one: _SplitFile, split: str | None, ids: Mapping[str, Id]) -> list[FoundImage]:
    """The images that are in the folder, with what the file says of them and their objects.

    `parse_coco` has checked the file; what it mends or leaves out, it will do again when the data
    set is loaded, so that a check can count it until then.
    """
    numbers, names = one.data.dataset_ids, one.names
    objects: dict[Id, list[dict[str, object]]] = defaultdict(list)
    for annotation in one.content["annotations"]:
        image_id = find_id(annotation, "image_id", names, "images")
        category_id = find_id(annotation, "category_id", numbers, "categories")
        if image_id is not None and category_id is not None:  # else of no image of the file
            name = one.data.class_names[numbers[category_id]]
            objects[image_id].append({**annotation, "category_id": ids[name]})
    entries = {entry["id"]: entry for entry in one.content["images"]}
    images = []
    for id_, name in names.items():
        if name in one.places:
            entry = dict(entries[id_])
            images.append(FoundImage(one.places[name], split, objects[id_], entry))
    return images


def _check_classes(first: _SplitFile, one: _SplitFile) -> None:
    unknown = [name for name in one.data.class_names if name not in first.data.class_names]
    if unknown:
        raise ValueError(
            f"{one.file} has the classes {first_few(unknown, 10)}, which {first.file} does not "
            f"have ({first_few(first.data.class_names, 10)}): training knows only its own"
        )


def read_coco_folder(listing: Listing) -> FoundDataset:
    """Reads one json file per split, which its name or folder says.

    Images lie below the json file, or anywhere else in the folder: then the one is taken whose
    path ends like the "file_name". Classes are those of the training file; the files of other
    splits may list them in another order, or fewer of them.

    Raises:
        ValueError: a file contradicts itself, two files are of one split, other classes in another
            split, an image that may be one of several, or images that mostly do not exist.
    """
    by_split = _by_split(listing)
    if None in by_split and len(by_split) > 1:
        raise ValueError(
            f"{by_split[None].file} is of no split, but there are files of others "
            f"({', '.join(filter(None, by_split))}): name it train or val, or leave it out by "
            f"dataset.exclude=['{by_split[None].file}']"
        )
    first = by_split.get("train") or next(iter(by_split.values()))
    ids = {str(category["name"]): category["id"] for category in first.data.categories}
    images: list[FoundImage] = []
    as_it_is = {}
    for split, one in by_split.items():
        _check_classes(first, one)
        images += _images(one, split, ids)
        root = one.image_root()
        same = one.data.class_names == first.data.class_names
        if split is not None and root is not None and same:
            as_it_is[split] = (str(listing.path(one.file)), str(listing.path(root)))
    return FoundDataset("COCO", first.data.categories, images, as_it_is)
