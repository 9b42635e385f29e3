"""Reads images of any number of channels, whose numbers stay as they are."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

__all__ = ["MAX_CHANNELS", "holds_channels", "read_array", "stored_size"]

MAX_CHANNELS = 16

_ARRAY = ".npy"
_TIFF = (".tif", ".tiff")
# Modes of Pillow whose numbers are no channels, and what they are read as.
_CONVERTED = {"1": "L", "P": "RGB", "PA": "RGBA"}


# Of float32, in which images are given to models.
_LARGEST = float(np.finfo(np.float32).max)

# Tags of TIFF files, and what they are where Pillow reads all numbers as they are stored: up to 8
# bits, unsigned, in which 0 is black.
_BITS, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT = 258, 262, 277, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


def _lost_by_pillow(path: Path) -> bool | None:
    """Whether Pillow changes or leaves out numbers of a TIFF file; None if it cannot read it."""
    try:
        with Image.open(path) as image:
            tags = getattr(image, "tag_v2", {})
            bits = tags.get(_BITS, (1,))
            kinds = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))
            return (
                tags.get(_SAMPLES, 1) > len(image.getbands())
                or max(bits if isinstance(bits, tuple) else (bits,)) > 8
                or set(kinds if isinstance(kinds, tuple) else (kinds,)) != {_UNSIGNED}
                or tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
                or getattr(image, "n_frames", 1) > 1
            )
    except UnidentifiedImageError:
        return None


def holds_channels(path: Path) -> bool:
    """Whether a file has channels that are no colours to Pillow: `.npy`, and some `.tif`."""
    suffix = path.suffix.lower()
    return suffix == _ARRAY or (suffix in _TIFF and _lost_by_pillow(path) is None)


def _channels_last(array: np.ndarray, axes: str) -> np.ndarray:
    """An array as (H, W, C)."""
    others = [axis for axis in axes if axis not in "YX"]
    if {"Y", "X"} - set(axes) or len(others) > 1:
        raise ValueError(
            f"it has the axes {axes} with the sizes {array.shape}, of which only rows (Y), "
            "columns (X) and one kind of channels can be read"
        )
    array = array.transpose([axes.index(axis) for axis in ("Y", "X", *others)])
    return array if others else array[..., None]


def _read_tiff(path: Path) -> np.ndarray:
    try:
        import tifffile
    except ImportError as error:
        raise ValueError(
            "it is a TIFF file of channels that are no colours, which needs another package: "
            "pip install tifffile"
        ) from error
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        return _channels_last(series.asarray(), series.axes)


def _read_npy(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an array must hold plain numbers, got the type {array.dtype}")
    if array.ndim not in (2, 3):
        raise ValueError(f"an array must be (H, W) or (H, W, C), got {array.shape}")
    if array.ndim == 3 and array.shape[0] <= MAX_CHANNELS < array.shape[2]:
        raise ValueError(
            f"an array must be (H, W, C) with 1 to {MAX_CHANNELS} channels, got {array.shape}, "
            "which seems to be (C, H, W): save array.transpose(1, 2, 0)"
        )
    return array if array.ndim == 3 else array[..., None]


def _read_image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        decoder = str(image.tile[0].args) if image.tile else ""
        if ";16" in decoder and len(image.getbands()) > 1:
            raise ValueError(
                "its colours have 16 bits, of which 8 would be lost: save it as .tif or .npy"
            )
        array = np.asarray(image.convert(_CONVERTED.get(image.mode, image.mode)))
    return array if array.ndim == 3 else array[..., None]


def read_array(path: Path, channels: int | None) -> np.ndarray:
    """Reads all channels of an image. EXIF orientation is not applied.

    Args:
        path: of an image, or of a `.npy` file with (H, W) or (H, W, C).
        channels: how many there must be; None for any number.

    Returns:
        (H, W, C), uint8 or, for any other numbers, float32.

    Raises:
        ValueError: it has another number of channels, no pixel, or pixels that are NaN,
            infinite or beyond the numbers of float32.
    """
    suffix = path.suffix.lower()
    if suffix == _ARRAY:
        array = _read_npy(path)
    elif suffix in _TIFF and _lost_by_pillow(path) is not False:
        array = _read_tiff(path)
    else:
        array = _read_image(path)
    found = array.shape[2]
    if channels is not None and found != channels:
        raise ValueError(
            f"it has {found} channels, but model.pixel_mean has {channels} values, one for each"
        )
    if array.dtype.kind not in "biuf" or array.size == 0 or found > MAX_CHANNELS:
        raise ValueError(
            f"it must have pixels, 1 to {MAX_CHANNELS} channels and plain numbers, "
            f"got {array.shape} {array.dtype}"
        )
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.isfinite(array).all():
        raise ValueError("it has pixels that are NaN or infinite")
    largest = max(abs(float(array.min())), abs(float(array.max())))
    if largest > _LARGEST:
        raise ValueError(f"its pixels must lie within ±{_LARGEST:g}, got {largest:g}: scale them")
    return array.astype(np.float32)


def stored_size(path: Path) -> tuple[int, int]:
    """The (height, width) of a file for which `holds_channels`."""
    array = _read_npy(path) if path.suffix.lower() == _ARRAY else _read_tiff(path)
    return array.shape[0], array.shape[1]
