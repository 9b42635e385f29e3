"""YOLO's text files: one box or polygon per line, in parts of the image's size."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import yaml

from vitadapter.data.coco.json_entries import check_image
from vitadapter.data.dataset_source import counted
from vitadapter.data.folders.found import (
    FoundDataset,
    FoundImage,
    categories,
    check_most,
    polygons_object,
    raise_faults,
    with_sizes,
)
from vitadapter.data.folders.listing import Listing, pair_labels, split_of

__all__ = ["read_yolo", "yolo_files"]

_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt")
_NAMES_KEY = re.compile(rb"^[\"']?names[\"']?\s*:", re.MULTILINE)
# Half a pixel of rounding in images of 100 pixels.
_TOLERANCE = 0.005


def _yaml_files(listing: Listing) -> list[str]:
    return [f for f in listing.named(".yaml", ".yml") if _NAMES_KEY.search(listing.head(f))]


def _label_files(listing: Listing) -> list[str]:
    """The text files but those that list classes or images, or are meant to be read."""
    lists = (*_NAME_FILES, "train.txt", "val.txt", "test.txt", "readme.txt", "requirements.txt")
    return [
        name
        for name in listing.named(".txt")
        if PurePosixPath(name).name.lower() not in lists
        and not PurePosixPath(name).name.lower().startswith("readme.")
    ]


def yolo_files(listing: Listing) -> list[str]:
    """Files that show that the folder is in this format."""
    stems = {PurePosixPath(image).stem for image in listing.images}
    labels = (f for f in _label_files(listing) if PurePosixPath(f).stem in stems)
    return _yaml_files(listing) or next(
        ([f] for f in labels if _is_numbers(listing.head(f, 200))), []
    )


def _is_numbers(head: bytes) -> bool:
    words = head.splitlines()[0].split() if head.strip() else []
    try:
        return len(words) >= 5 and all(math.isfinite(float(word)) for word in words)
    except ValueError:
        return False


def _settings_of(listing: Listing) -> tuple[dict[str, object], str]:
    """The content of the yaml file, and its path; of none an empty one."""
    found = _yaml_files(listing)
    if len(found) > 1:
        raise ValueError(
            f"dataset.root has several yaml files with names ({', '.join(found[:3])}): leave "
            f"others out by dataset.exclude=['{found[1]}']"
        )
    if not found:
        return {}, ""
    try:
        content = yaml.safe_load(listing.path(found[0]).read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{listing.path(found[0])} cannot be read: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{listing.path(found[0])} must have keys such as names and train")
    return dict(content), found[0]


def _names(listing: Listing, settings: Mapping[str, object], source: str) -> list[str]:
    names, count = settings.get("names"), settings.get("nc")
    if isinstance(names, Mapping):
        if set(names) != set(range(len(names))):
            raise ValueError(f"{source}: names must be numbered 0..{len(names) - 1}")
        names = [names[number] for number in range(len(names))]
    if names is None:
        files = [n for n in listing.files if PurePosixPath(n).name.lower() in _NAME_FILES]
        if not files:
            raise ValueError(
                "dataset.root has YOLO's label files, but neither a data.yaml with names nor a "
                "classes.txt: add classes.txt with one class name per line"
            )
        source = files[0]
        lines = listing.path(source).read_text(encoding="utf-8-sig", errors="replace").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    # Not shown: a few lines of yaml can stand for gigabytes of text.
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise ValueError(f"{source}: names must be a list of texts")
    if count is not None and count != len(names):
        raise ValueError(f"{source}: nc does not fit: it has {counted(len(names), 'name')}")
    return [str(name) for name in names]


def _below_root(listing: Listing, source: str, settings: Mapping[str, object], path: str) -> str:
    """The path relative to the root of what a yaml file names; "" where it is not there.

    The yaml file may come from another machine: then the longest end of the path that exists in
    the folder is taken.
    """
    here = PurePosixPath(source).parent.as_posix()
    base = settings.get("path") if isinstance(settings.get("path"), str) else ""
    path = path.replace("\\", "/")
    folders = {PurePosixPath(f).parent.as_posix() for f in listing.files}
    folders |= {p.as_posix() for f in folders for p in PurePosixPath(f).parents}
    known = (folders | set(listing.files)) - {"."}
    ends = []
    for start in (f"{here}/{path}", f"{here}/{base}/{path}", f"{base}/{path}"):
        parts = [p for p in os.path.normpath(start).split("/") if p not in ("", ".", "..")]
        ends += ["/".join(parts[cut:]) for cut in range(len(parts))]
    return max((end for end in ends if end in known), key=len, default="")


def _splits(listing: Listing, settings: Mapping[str, object], source: str) -> dict[str, str]:
    """The split of each image, as the yaml file says, or else as the folders are named."""
    found: dict[str, str] = {}
    for key in ("train", "val", "test"):
        given = settings.get(key) or (settings.get("valid") if key == "val" else None)
        if not given and f"{key}.txt" in listing.files:  # as Darknet has them
            given = f"{key}.txt"
        for path in given if isinstance(given, list) else [given] if given else []:
            if not isinstance(path, str):
                raise ValueError(f"{source}: {key} must be a path or a list of paths")
            place = _below_root(listing, source, settings, path)
            if not place:
                continue
            listed = _listed_images(listing, place) if place.endswith(".txt") else None
            for image in listing.images if listed is None else listed:
                inside = listed is not None or image.startswith(f"{place}/")
                if inside and found.setdefault(image, key) != key and key != "test":
                    raise ValueError(
                        f"{source} has {image} in two splits, {found[image]} and {key}"
                    )
    return found or {i: s for i in listing.images if (s := split_of(i)) is not None}


def _listed_images(listing: Listing, list_file: str) -> list[str]:
    """The images whose paths a text file lists, by the longest end that is in the folder."""
    text = listing.path(list_file).read_text(encoding="utf-8-sig", errors="replace")
    known = set(listing.images)
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        parts = line.replace("\\", "/").split("/")
        ends = ("/".join(parts[cut:]) for cut in range(len(parts)))
        name = next((end for end in ends if end in known), None)
        if name is None:
            alike = listing.images_by_name.get(parts[-1], [])
            name = alike[0] if len(alike) == 1 else None
        if name is None:
            raise ValueError(f"{list_file} lists {line}, which is not in dataset.root")
        found.append(name)
    return found


def _object(
    line: str, num_classes: int, size: tuple[int, int], keypoints: bool
) -> dict[str, object]:
    words = line.split()
    try:
        label, *values = (float(word) for word in words)
    except ValueError as error:
        raise ValueError("must consist of numbers") from error
    if not label.is_integer() or not 0 <= label < num_classes:
        raise ValueError(f"has the class {words[0]}, but the names are 0..{num_classes - 1}")
    values = values[:4] if keypoints else values
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"must have a class and 4 numbers, or points of a polygon, got {line!r}")
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in values):
        raise ValueError(f"must have parts of the image's size, from 0 to 1, got {line!r:.80}")
    height, width = size
    if len(values) == 4:
        x, y, w, h = (v * s for v, s in zip(values, (width, height) * 2, strict=True))
        found = {"bbox": [x - w / 2, y - h / 2, w, h], "area": w * h}
    else:
        sides = (width, height) * (len(values) // 2)
        found = polygons_object([[v * s for v, s in zip(values, sides, strict=True)]])
    return {**found, "category_id": int(label) + 1}


def _read_labels(
    listing: Listing, images: Sequence[FoundImage], num_classes: int, keypoints: bool
) -> list[str]:
    """Gives images their annotations; returns what is wrong in their files."""
    faults = []
    for image in images:
        if image.label is None:
            continue
        image.annotations = []
        size = check_image(image.entry)
        text = listing.path(image.label).read_text(encoding="utf-8-sig", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    image.annotations.append(_object(line, num_classes, size, keypoints))
                except ValueError as error:
                    faults.append(f"line {number} of {image.label} {error}")
    return faults


def read_yolo(listing: Listing) -> FoundDataset:
    """Reads the label files of boxes (class, centre, size) and of polygons (class, points).

    A polygon is one object: the format knows neither crowds nor objects of several parts. Of poses
    (`kpt_shape` in the yaml file) the box is taken.

    Raises:
        ValueError: no names, faults in label files, or label files that mostly lack their image.
    """
    settings, source = _settings_of(listing)
    names = _names(listing, settings, source)
    splits = _splits(listing, settings, source)
    labels = _label_files(listing)
    pairs, strays = pair_labels(listing.images, labels)
    check_most("label files without an image", strays, len(labels), "set another dataset.root=...")
    chosen = [image for image in listing.images if not splits or image in splits]
    images = [FoundImage(file, splits.get(file), label=pairs.get(file)) for file in chosen]
    images = with_sizes(listing, images)
    keypoints = settings.get("kpt_shape") is not None
    raise_faults("YOLO", _read_labels(listing, images, len(names), keypoints))
    return FoundDataset("YOLO", categories(names), images)
