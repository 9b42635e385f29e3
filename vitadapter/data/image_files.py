"""Finds, opens and reads image files, in the same way for training, testing and pictures."""

import logging
import os
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unicodedata import normalize

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from vitadapter.data.channel_files import holds_channels, read_array, stored_size

__all__ = [
    "IMAGE_SUFFIXES",
    "channels_size",
    "check_map_size",
    "files_by_name",
    "image_paths",
    "is_image_name",
    "missing_files",
    "open_image",
    "read_channels",
    "read_image",
    "read_numbers",
    "read_record_image",
    "read_stored",
    "reason",
    "walk",
]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_READABLE_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")

_TURNED = range(2, 9)  # values of the EXIF orientation that turn or mirror
# What Pillow raises for broken EXIF data.
_EXIF_ERRORS = (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error)
# The largest values of 8, 12, 16 and 31 bits.
_RANGES = (2**8 - 1, 2**12 - 1, 2**16 - 1, 2**31 - 1)
# An image whose levels are closer together is practically black, white or grey.
_FEW_LEVELS = 16
# Pillow stretches grey with 2 or 4 bits to 0..255, by these factors.
_STRETCHED = {"L;2": 85, "L;4": 17}
# The subjects of which this process has warned.
_warned: set[str] = set()


def _warn_once(subject: str, message: str, *values: object) -> None:
    if subject not in _warned:
        _warned.add(subject)
        logger.warning(message, *values)


def reason(error: Exception) -> str:
    """What an error says, with its type unless it was raised for users to read."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image. The `._*` files of macOS are not."""
    return name.lower().endswith(_READABLE_SUFFIXES) and not name.startswith("._")


def _is_repeated(link: Path, followed: set[Path]) -> bool:
    """Whether a link to a folder leads to one that contains it, or that another link has led to.

    If folders link to each other, there are too many paths through them to follow them all.
    """
    target = link.resolve()
    if target in followed or target in {folder.resolve() for folder in link.parents}:
        return True
    followed.add(target)
    return False


def walk(root: Path) -> Iterator[Path]:
    """All files below a folder, including those behind links."""

    def fail(error: OSError) -> None:
        raise ValueError(f"the folder {error.filename} cannot be listed: {error.strerror}")

    followed: set[Path] = set()
    for folder, below, names in os.walk(root, followlinks=True, onerror=fail):
        for link in [Path(folder, name) for name in below]:
            if link.is_symlink() and _is_repeated(link, followed):
                logger.warning(
                    "%s is left out: it links to a folder that contains it, or that another link "
                    "leads to",
                    link,
                )
                below.remove(link.name)
        yield from (Path(folder, name) for name in names)


def image_paths(inputs: Sequence[str | Path]) -> list[Path]:
    """The image files among files and folders, those of a folder in order of their names.

    Raises:
        ValueError: an input does not exist, or a folder contains no image.
    """
    found: list[Path] = []
    for given in inputs:
        path = Path(given).expanduser()
        if not path.is_dir():
            if not path.is_file():
                raise ValueError(f"the images must be files or folders, but {path} does not exist")
            found.append(path)
            continue
        below = sorted(file for file in walk(path) if is_image_name(file.name))
        if not below:
            raise ValueError(
                f"the folder {path} must contain images ({', '.join(IMAGE_SUFFIXES)}), found none"
            )
        found += below
    return found


def files_by_name(root: Path, suffix: str | None) -> dict[str, str]:
    """Finds the image files below a folder, by their names without the suffix.

    Args:
        root: the folder; `._*` files of macOS in it are left out.
        suffix: end of the names, in upper or lower case; None for that of any image.

    Returns:
        The paths, by the path below `root` without the suffix, in Unicode's composed form (NFC;
        macOS writes NFD).

    Raises:
        ValueError: two files have the same name, or a folder cannot be listed.
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
    """The path or, if it does not exist, the one with the other Unicode form (NFC, NFD)."""
    # For a name that is too long, `os.path.exists` returns False, but `Path` raises an error.
    if not os.path.exists(path):  # noqa: PTH110
        for form in ("NFC", "NFD"):
            for other in (path.with_name(normalize(form, path.name)), normalize(form, str(path))):
                if os.path.exists(other):  # noqa: PTH110
                    return Path(other)
    return path


def missing_files(file_names: Iterable[str]) -> list[str]:
    """The files that do not exist. URLs are assumed to exist."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
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
def _existing_file(file_name: str | Path) -> Iterator[Path]:
    """The path of a file. Any error until it is left becomes a ValueError that names the file."""
    try:
        path = _located(Path(PathManager.get_local_path(str(file_name))))
        if not path.is_file():
            raise ValueError(
                "it is a folder, pipe or device" if path.exists() else "it does not exist"
            )
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        yield path
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{file_name} cannot be read: it is not an image, or of a kind that Pillow does not "
            "read, such as floating-point colours"
        ) from error
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise ValueError(f"{file_name} cannot be read: {reason(error)}") from error


@contextmanager
def open_image(file_name: str | Path) -> Iterator[ImageFile.ImageFile]:
    """Opens an image. Any error until it is closed becomes a ValueError that names the file.

    Args:
        file_name: a path, or a URL that Detectron2's `PathManager` knows.

    Raises:
        ValueError: it is not a file (reading a pipe might never end), it is not an image, or the
            body of the `with` statement raises an error.
    """
    with (
        _existing_file(file_name) as path,
        path.open("rb") as file,
        Image.open(file) as image,
    ):
        yield image


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
        # Where nothing is to be turned, Pillow would copy the image, which takes a millisecond.
        return ImageOps.exif_transpose(image) if turned else image
    except _EXIF_ERRORS:  # the pixels are good, and Detectron2 uses them as they are, too
        return image


def _as_array(image: Image.Image, image_format: str) -> np.ndarray:
    """Detectron2's conversion; to convert to the mode that it has, Pillow would copy the image."""
    if image.mode == "RGB" and image_format in ("RGB", "BGR"):
        pixels = np.asarray(image)
        return pixels if image_format == "RGB" else pixels[:, :, ::-1]
    return detection_utils.convert_PIL_to_numpy(image, image_format)


def _scaled(image: Image.Image) -> tuple[Image.Image, float | None]:
    """Scales numbers with more than 8 bits to 8-bit grey; also the range if it was a guess."""
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise ValueError("it has pixels that are NaN or infinite")
    is_float = image.mode == "F"
    # Of floats, up to half a level beyond a range is a rounding error.
    slack = 0.5 / 255 if is_float else 0.0
    ranges = (1, *_RANGES) if is_float else _RANGES
    white = next((end for end in ranges if high <= end * (1 + slack)), None)
    if white is None or low < -slack * white:
        raise ValueError(f"its pixels must lie in 0..{_RANGES[-1]}, got {low:g} to {high:g}")
    levels = (values * (255 / white)).round().clip(0, 255).astype(np.uint8)
    own_range = {"F": 1, "I": None}.get(image.mode, 2**16 - 1)
    return Image.fromarray(levels), None if white == own_range else white


def _warn_of_surprises(file_name: str, pixels: np.ndarray, guessed: float | None) -> None:
    low, high = int(pixels.min()), int(pixels.max())
    if high - low < _FEW_LEVELS:
        _warn_once(
            "few levels",
            "%s has hardly any contrast: its levels are %d..%d of 0..255. Numbers with more than 8 "
            "bits are scaled by the range that they seem to have, and 16-bit colours by 65535: "
            "rescale such images (no others will be named)",
            file_name,
            low,
            high,
        )
    elif guessed is not None:
        _warn_once(
            f"range {guessed}",
            "%s has numbers with more than 8 bits, of which 0..%d become 0..255: a guess from its "
            "brightest pixel. Images with other guesses (one is named for each) are scaled "
            "differently: convert images to 8 bits to scale them all alike",
            file_name,
            guessed,
        )


def read_channels(file_name: str, channels: int | None = None) -> np.ndarray:
    """Reads all channels of an image or a `.npy` file, as they are; see `read_array`.

    Args:
        file_name: path of the image.
        channels: how many there must be; None for any number.

    Returns:
        (H, W, C), uint8 or float32.

    Raises:
        ValueError: it is not an image, or has other channels; names the file.
    """
    with _existing_file(file_name) as path:
        return read_array(path, channels)


def _read_stored_colours(path: Path, image_format: str) -> np.ndarray:
    pixels = read_array(path, None)
    if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
        raise ValueError(
            f"it has {pixels.shape[2]} channels of {pixels.dtype}, which are no 8-bit colours: set "
            "model.pixel_mean and model.pixel_std to a value for each channel, and for three "
            "channels that are no colours image_format of the mappers to 3"
        )
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


def read_image(file_name: str, image_format: str | int) -> np.ndarray:
    """Reads an image of any colour mode, drops alpha, and applies the EXIF orientation.

    Where `image_format` is a number of channels, it does what `read_channels` does instead.

    Numbers with more than 8 bits are scaled to 0..255, while Detectron2 clips them:

    - 16-bit colours from 0..65535;
    - 16-bit grey from the smallest of 0..255, 0..4095 and 0..65535 that contains its brightest
      pixel, because cameras and exports leave bits unused;
    - 32-bit integers likewise, or from 0..2147483647;
    - floats from 0..1 if none is larger, otherwise like 32-bit integers.

    All ranges except those of colours, 0..65535 and floats in 0..1 are guesses. One warning in each
    process names such an image, one an image with hardly any contrast, and one a file with several
    images, of which the first is used.

    Args:
        file_name: path of the image.
        image_format: "RGB", "BGR" or another format of Detectron2's `read_image`; or a number of
            channels.

    Returns:
        (H, W, C) uint8; of a number of channels, numbers other than 8-bit are float32.

    Raises:
        ValueError: it is not an image, or has pixels that are negative, NaN or infinite; names the
            file.
    """
    if isinstance(image_format, int):
        return read_channels(file_name, image_format)
    with _existing_file(file_name) as path:
        if holds_channels(path):
            return _read_stored_colours(path, image_format)
    with open_image(file_name) as image:
        # The second image of an MPO file is a preview.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            _warn_once("pages", "%s holds several images: only the first is used", file_name)
        # Loaded first: Detectron2 swallows the error of a broken PNG when it reads EXIF data.
        image.load()
        upright, guessed = _upright(image), None
        if upright.mode[0] in "IF":
            upright, guessed = _scaled(upright)
        pixels = _as_array(upright, image_format)
        if pixels.dtype == np.uint8:
            _warn_of_surprises(file_name, pixels, guessed)
        return pixels


def channels_size(file_name: str | Path) -> tuple[int, int] | None:
    """The (height, width) of an image whose channels are no colours to Pillow; None for others."""
    with _existing_file(file_name) as path:
        return stored_size(path) if holds_channels(path) else None


def read_stored(file_name: str) -> np.ndarray:
    """Reads an image (H, W, C) in RGB or, if its channels are no colours to Pillow, all of them."""
    if channels_size(file_name) is not None:
        return read_channels(file_name)
    return read_image(file_name, "RGB")


def read_record_image(record: Mapping[str, object], image_format: str | int | None) -> np.ndarray:
    """Reads the image (H, W, C) of a data set dict.

    Args:
        record: with "file_name".
        image_format: as in `read_image`; None to do what `read_stored` does.

    Raises:
        ValueError: it is not an image, or does not have the size of the dict; names the file.
    """
    file_name = str(record["file_name"])
    image = read_stored(file_name) if image_format is None else read_image(file_name, image_format)
    detection_utils.check_image_size(dict(record), image)
    return image


def check_map_size(what: str, labels: np.ndarray, size: tuple[int, ...]) -> None:
    """Refuses a map (H, W, ...) that does not have the (height, width) of its image."""
    if labels.shape[:2] != tuple(size):
        raise ValueError(
            f"{what} must have its image's (height, width) {tuple(size)}, got {labels.shape[:2]}"
        )


def read_numbers(file_name: str | Path) -> np.ndarray:
    """Reads unscaled numbers (H, W), colours (H, W, C), or the indices (H, W) of a palette image.

    Raises:
        ValueError: it is not an image; names the file.
    """
    with open_image(file_name) as image:
        decoder = image.tile[0].args if image.tile else ""  # "L;4", or a tuple that begins with it
        packing = decoder[0] if isinstance(decoder, tuple) else decoder
        image.load()
        numbers = np.asarray(image)
        return numbers // _STRETCHED[packing] if packing in _STRETCHED else numbers
