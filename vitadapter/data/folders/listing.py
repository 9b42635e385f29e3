"""The files of a data set's folder: images, the label files that belong to them, and splits."""

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from PIL import ExifTags, Image

from vitadapter.data.image_files import channels_size, is_image_name, open_image, walk

logger = logging.getLogger(__name__)

__all__ = [
    "ImageFacts",
    "Listing",
    "image_facts",
    "image_key",
    "is_label_folder",
    "pair_labels",
    "split_of",
]

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# "train", "val2017", "train_labels", "images_test"; not "train station".
_SPLIT_FOLDER = re.compile(
    rf"(?:[a-z0-9]+[-_])?({'|'.join(sorted(_SPLITS, reverse=True))})[-_]?\d*"
    r"(?:[-_]?(?:set|images?|labels?|masks?|annot(?:ations?)?))?"
)
# Folders that say what is in them, but nothing of the image.
_IMAGE_FOLDERS = {"images", "image", "imgs", "img", "img_dir", "jpegimages", "leftimg8bit", "rgb"}
_LABEL_FOLDERS = {
    *("labels", "label", "annotations", "annotation", "annot", "ann", "ann_dir", "gt", "gtfine"),
    *("masks", "mask", "sem_seg", "segmentation", "segmentations", "segmentationclass", "targets"),
    *("groundtruth", "ground_truth", "foreground", "label_maps"),
}
_LABEL_FOLDER = re.compile(r"(.+?)[-_]?(?:labels?|masks?|annot(?:ations?)?)")
# Threads: what takes time is waiting for the disk.
_NUM_READERS = 8


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _is_excluded(path: str, pattern: str) -> bool:
    """Whether the path, a folder above it, or the name of one of them fits the pattern."""
    parts = path.split("/")
    names = [*parts, *("/".join(parts[: n + 1]) for n in range(len(parts)))]
    wanted = pattern.strip("/")
    # A name may have brackets, which are signs of patterns.
    return any(name == wanted or fnmatch(name, wanted) for name in names)


def _state(path: Path) -> tuple[int, int]:
    """(size, time of the last change); of a link that leads nowhere, (0, 0)."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


class Listing:
    """The files below a folder; hidden ones and those of macOS are left out.

    Args:
        root: the folder.
        exclude: patterns such as "*.xml" or "old/labels" of files and folders to leave out.

    Raises:
        ValueError: no folder, or one that cannot be listed.
    """

    def __init__(self, root: str | Path, exclude: Sequence[str] = ()) -> None:
        self.root = Path(root).expanduser().absolute()
        if not self.root.is_dir():
            raise ValueError(f"dataset.root must be a folder, got {root}: set dataset.root=...")
        names = {path.relative_to(self.root).as_posix(): path for path in walk(self.root)}
        names = {name: path for name, path in names.items() if not _is_hidden(name)}
        excluded: set[str] = set()
        for pattern in exclude:
            fitting = {name for name in names if _is_excluded(name, pattern)}
            if not fitting:
                logger.warning("dataset.exclude: no file in %s fits %s", root, pattern)
            excluded |= fitting
        found = {name: _state(path) for name, path in names.items() if name not in excluded}
        self.files: dict[str, tuple[int, int]] = dict(sorted(found.items()))
        """(size, time of the last change) of each path relative to the root, in their order."""

    @cached_property
    def images(self) -> list[str]:
        """The files that are images by their name."""
        return [name for name in self.files if is_image_name(PurePosixPath(name).name)]

    @cached_property
    def images_by_name(self) -> dict[str, list[str]]:
        """Images by the name without folders, in Unicode's composed form."""
        found = defaultdict(list)
        for image in self.images:
            found[normalize("NFC", PurePosixPath(image).name)].append(image)
        return found

    def named(self, *suffixes: str) -> list[str]:
        """The files whose names end so, in capitals or not."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def path(self, name: str) -> Path:
        """Where a file of the listing lies."""
        return self.root / name

    def head(self, name: str, size: int = 2**20) -> bytes:
        """The beginning of a file; nothing if it cannot be read."""
        try:
            with self.path(name).open("rb") as file:
                return file.read(size)
        except OSError:
            return b""

    def fingerprint(self) -> str:
        """Changes with the folder's place, and with the name, size or time of any file in it."""
        state = [str(self.root.resolve()), *(f"{n}\0{s}" for n, s in self.files.items())]
        return hashlib.sha256("\0".join(state).encode("utf-8", "surrogateescape")).hexdigest()

    def image_facts(self, images: Iterable[str]) -> "list[ImageFacts | ValueError]":
        """What the headers of images say; the error where one cannot be read."""

        def facts(name: str) -> ImageFacts | ValueError:
            try:
                return image_facts(self.path(name))
            except ValueError as error:
                return error

        with ThreadPoolExecutor(_NUM_READERS) as readers:
            return list(readers.map(facts, images))


@dataclass(frozen=True)
class ImageFacts:
    """What the header of an image file says.

    Attributes:
        size: (height, width) in pixels, after the rotation that EXIF data ask for.
        mode: of Pillow, such as "RGB".
        rotated: whether EXIF data ask for a rotation or flip.
    """

    size: tuple[int, int]
    mode: str
    rotated: bool


def image_facts(path: str | Path) -> ImageFacts:
    """Reads the header of an image.

    Raises:
        ValueError: not an image; names the file.
    """
    if (size := channels_size(path)) is not None:
        return ImageFacts(size, "channels", False)
    with open_image(path) as image:
        turned = _orientation(image)
        width, height = image.size
        size = (width, height) if turned >= 5 else (height, width)
        return ImageFacts(size, image.mode, turned > 1)


def _orientation(image: Image.Image) -> int:
    # Of a PNG, Pillow would read all pixels to find EXIF data that nobody writes behind them.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of broken EXIF data Pillow raises nearly anything; `read_image` skips them
        return 1
    return turned if isinstance(turned, int) and 1 <= turned <= 8 else 1


def split_of(path: str, *, by_name: bool = False) -> str | None:
    """ "train", "val" or "test" if a folder of the path says so.

    Args:
        path: relative to the root.
        by_name: whether the name of the file counts too, and first: "instances_train2017.json".
    """
    *folders, name = path.split("/")
    words = re.split(r"[^a-z]+", name.lower()) if by_name else ()
    for word in words:
        if word in _SPLITS:
            return _SPLITS[word]
    for folder in folders:
        match = _SPLIT_FOLDER.fullmatch(folder.lower())
        if match is not None:
            return _SPLITS[match[1]]
    return None


def image_key(path: str, label_suffixes: Sequence[str] = ()) -> tuple[str, ...]:
    """What the paths of an image and of its label file have in common.

    `images/train/1.jpg` and `labels/train/1.txt` are ("train", "1"); so are `train/1.jpg` and
    `train_labels/1.png`.

    Args:
        path: relative to the root.
        label_suffixes: ends of names without their type, such as "_mask", that are left out.
    """
    *folders, name = normalize("NFC", path).split("/")
    key = []
    for folder in map(str.lower, folders):
        if folder not in _IMAGE_FOLDERS | _LABEL_FOLDERS:
            match = _LABEL_FOLDER.fullmatch(folder)
            key.append(match[1] if match else folder)
    stem = name.rpartition(".")[0]
    suffix = next((s for s in label_suffixes if stem.lower().endswith(s)), "")
    return (*key, stem.removesuffix(stem[len(stem) - len(suffix) :]) if suffix else stem)


def is_label_folder(path: str) -> bool:
    """Whether a folder of the path is one for labels by its name."""
    folders = [folder.lower() for folder in path.split("/")[:-1]]
    return any(folder in _LABEL_FOLDERS or _LABEL_FOLDER.fullmatch(folder) for folder in folders)


def pair_labels(
    images: Sequence[str], labels: Sequence[str], label_suffixes: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """The label file of each image that has one: that of its key, else the only one of its name.

    Args:
        images: paths relative to the root.
        labels: likewise.
        label_suffixes: as in `image_key`.

    Returns:
        From images to label files, and the label files without an image.

    Raises:
        ValueError: two images of one label file, or two label files of one image.
    """
    by_key: dict[tuple[str, ...], list[str]] = defaultdict(list)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for image in images:
        key = image_key(image)
        by_key[key].append(image)
        by_stem[key[-1]].append(image)
    pairs: dict[str, str] = {}
    strays = []
    for label in labels:
        key = image_key(label, label_suffixes)
        alike = by_stem[key[-1]] if len(by_stem.get(key[-1], ())) == 1 else []
        found = by_key.get(key, alike)
        if not found:
            strays.append(label)
            continue
        if len(found) > 1:
            raise ValueError(
                f"{found[0]} and {found[1]} would both have the label file {label}: leave one out "
                f"by dataset.exclude=['{found[1]}']"
            )
        if found[0] in pairs:
            raise ValueError(
                f"{pairs[found[0]]} and {label} are both label files of {found[0]}: leave one of "
                f"them out, for instance by dataset.exclude=['{label.rpartition('/')[0] or label}']"
            )
        pairs[found[0]] = label
    return pairs, strays
