"""Image files: found in folders, opened and read by one rule for training, testing and pictures."""

import logging
import os
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unicodedata import normalize

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "IMAGE_SUFFIXES",
    "files_by_name",
    "is_image_name",
    "missing_files",
    "open_image",
    "read_image",
    "read_numbers",
    "read_record_image",
    "reason",
    "walk",
]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# What Pillow raises on broken EXIF data.
_EXIF_ERRORS = (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error)
# Largest values of 8, 12, 16 and 31 bits.
_RANGES = (2**8 - 1, 2**12 - 1, 2**16 - 1, 2**31 - 1)
# An image whose levels lie closer together is as good as black, white or grey.
_FEW_LEVELS = 16
# Pillow stretches grey of 2 and 4 bits to 0..255.
_STRETCHED = {"L;2": 85, "L;4": 17}
# Of what the user has been told in this process.
_told: set[str] = set()


def _tell_once(subject: str, message: str, *values: object) -> None:
    if subject not in _told:
        _told.add(subject)
        logger.warning(message, *values)


def reason(error: Exception) -> str:
    """What an error says; with its type where it was not raised to be read by users."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image, unlike the `._*` files of macOS."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("._")


def _is_repeated(link: Path, followed: set[Path]) -> bool:
    """Whether a link to a folder leads to one that holds it, or that another link has led to.

    Of folders that link to each other there are more ways through than can be walked.
    """
    target = link.resolve()
    if target in followed or target in {folder.resolve() for folder in link.parents}:
        return True
    followed.add(target)
    return False


def walk(root: Path) -> Iterator[Path]:
    """All files below a folder, also those behind links."""

    def fail(error: OSError) -> None:
        raise ValueError(f"the folder {error.filename} cannot be listed: {error.strerror}")

    followed: set[Path] = set()
    for folder, below, names in os.walk(root, followlinks=True, onerror=fail):
        for link in [Path(folder, name) for name in below]:
            if link.is_symlink() and _is_repeated(link, followed):
                logger.warning(
                    "%s is left out: it links to a folder that holds it, or that is read by "
                    "another link",
                    link,
                )
                below.remove(link.name)
        yield from (Path(folder, name) for name in names)


def files_by_name(root: Path, suffix: str | None) -> dict[str, str]:
    """Paths of the files below a folder by the part of their names that belongs to the picture.

    Args:
        root: the folder; `._*` files of macOS in it are left out.
        suffix: end of the names, in capitals or not; None for that of any image.

    Returns:
        dict: from the path below `root` without the suffix, in Unicode's composed form (NFC; macOS
        writes the other), to the path.

    Raises:
        ValueError: two files of one name, or a folder that cannot be listed.
    """
    found: dict[str, str] = {}
    for path in walk(root):
        end = path.suffix if suffix is None else suffix
        if not is_image_name(path.name) or not path.name.lower().endswith(end.lower()):
            continue
        common = normalize("NFC", path.relative_to(root).as_posix()[: -len(end)])
        if common in found:
            raise ValueError(
                f"{found[common]} and {path} have one name: which one is a label map's image?"
            )
        found[common] = str(path)
    return found


def _located(path: Path) -> Path:
    """The path, or if it does not exist, the one that Unicode's other form (NFC, NFD) names."""
    # `os.path.exists` takes a name that is too long for one that does not exist; `Path` raises.
    if not os.path.exists(path):  # noqa: PTH110
        for form in ("NFC", "NFD"):
            for other in (path.with_name(normalize(form, path.name)), normalize(form, str(path))):
                if os.path.exists(other):  # noqa: PTH110
                    return Path(other)
    return path


def missing_files(file_names: Iterable[str]) -> list[str]:
    """Those that do not exist; URLs are taken to exist."""
    by_folder = defaultdict(list)
    for path in (Path(name) for name in file_names if "://" not in name):
        by_folder[path.parent].append(path)
    missing = []
    for folder, members in by_folder.items():
        # One listing instead of one stat per image: COCO has 118 thousand of them.
        listed = set(os.listdir(folder)) if os.path.isdir(folder) else set()  # noqa: PTH112, PTH208
        unlisted = (path for path in members if path.name not in listed)
        missing += [str(p) for p in unlisted if not os.path.exists(_located(p))]  # noqa: PTH110
    return missing


@contextmanager
def open_image(file_name: str | Path) -> Iterator[Image.Image]:
    """Opens an image; whatever fails until it is closed becomes a ValueError that names the file.

    Args:
        file_name: a path, or a URL that Detectron2's `PathManager` knows.

    Raises:
        ValueError: not a file (a pipe would be waited for without end), not an image, or an error
            in the body of the `with` statement.
    """
    try:
        path = _located(Path(PathManager.get_local_path(str(file_name))))
        if not path.is_file():
            raise ValueError(
                "it is a folder, pipe or device" if path.exists() else "it does not exist"
            )
        with path.open("rb") as file, Image.open(file) as image:
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{file_name} cannot be read: it is no image, or one of a kind that Pillow does not "
            "read, such as colours in floats"
        ) from error
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise ValueError(f"{file_name} cannot be read: {reason(error)}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _EXIF_ERRORS:  # the pixels are good: Detectron2 takes them as they are, too
        return image


def _scaled(image: Image.Image) -> tuple[Image.Image, float | None]:
    """Numbers of more than 8 bits as grey of 8 bits, and the range if it had to be guessed."""
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise ValueError("it has pixels that are NaN or infinite")
    is_float = image.mode == "F"
    # Half a level beyond a range is a rounding error.
    ranges = (1, *_RANGES) if is_float else _RANGES
    white = next((end for end in ranges if high <= end * (1 + 0.5 / 255)), None)
    if white is None or low < -0.5 / 255 * white:
        raise ValueError(f"its pixels must lie in 0..{_RANGES[-1]}, got {low:g} to {high:g}")
    levels = (values * (255 / white)).round().clip(0, 255).astype(np.uint8)
    own_range = {"F": 1, "I": None}.get(image.mode, 2**16 - 1)
    return Image.fromarray(levels), None if white == own_range else white


def _tell_of_surprises(file_name: str, pixels: np.ndarray, guessed: float | None) -> None:
    low, high = int(pixels.min()), int(pixels.max())
    if high - low < _FEW_LEVELS:
        _tell_once(
            "few levels",
            "%s has hardly any contrast: its levels are %d..%d of 0..255. Numbers of more than 8 "
            "bits are scaled by the range that they seem to have, colours of 16 bits by 65535: "
            "rescale such images (further ones are not named)",
            file_name,
            low,
            high,
        )
    elif guessed is not None:
        _tell_once(
            f"range {guessed}",
            "%s holds numbers of more than 8 bits, of which 0..%d become 0..255: a guess from its "
            "brightest pixel. An image with another guess (one is named for each) is scaled "
            "differently: convert images to 8 bits to scale them all alike",
            file_name,
            guessed,
        )


def read_image(file_name: str, image_format: str) -> np.ndarray:
    """Reads an image of any colour mode; alpha is dropped and EXIF orientation applied.

    What a file holds in more than 8 bits is scaled to 0..255, where Detectron2 clips it:

    - colours of 16 bits from 0..65535;
    - grey of 16 bits from the smallest of 0..255, 0..4095 and 0..65535 that holds its brightest
      pixel, since cameras and exports leave bits unused;
    - integers of 32 bits likewise, or else from 0..2147483647;
    - floats from 0..1 if none is larger, else as integers of 32 bits.

    Anything but colours, 0..65535 and floats of 0..1 is a guess, which one warning in each process
    names; so does one for an image of hardly any contrast, and one for a file of several images,
    of which the first is taken.

    Args:
        file_name: path of the image.
        image_format: "RGB", "BGR" or another format of Detectron2's `read_image`.

    Returns:
        np.ndarray: `(H, W, C)` uint8.

    Raises:
        ValueError: not an image, or one whose pixels are negative, NaN or infinite; names the
            file.
    """
    with open_image(file_name) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO":  # with a preview
            _tell_once("pages", "%s holds several images: only the first is used", file_name)
        # Detectron2 looks for EXIF data first, and swallows the error of a broken PNG there.
        image.load()
        upright, guessed = _upright(image), None
        if upright.mode[0] in "IF":
            upright, guessed = _scaled(upright)
        pixels = detection_utils.convert_PIL_to_numpy(upright, image_format)
        if pixels.dtype == np.uint8:
            _tell_of_surprises(file_name, pixels, guessed)
        return pixels


def read_record_image(record: Mapping[str, object], image_format: str) -> np.ndarray:
    """The image of a data set dict, `(H, W, C)`, of the size that its annotations give.

    Raises:
        ValueError: not an image, or one of another size; names the file.
    """
    image = read_image(str(record["file_name"]), image_format)
    detection_utils.check_image_size(dict(record), image)
    return image


def read_numbers(file_name: str | Path) -> np.ndarray:
    """What a file holds, unscaled: `(H, W)` or, of colours, `(H, W, C)`; of a palette the indices.

    Raises:
        ValueError: not an image; names the file.
    """
    with open_image(file_name) as image:
        decoder = image.tile[0].args if image.tile else ""  # "L;4", or a tuple that begins so
        packing = decoder if isinstance(decoder, str) else decoder[0]
        image.load()
        numbers = np.asarray(image)
        return numbers // _STRETCHED[packing] if packing in _STRETCHED else numbers
