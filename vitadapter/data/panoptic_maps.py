"""Panoptic maps as COCO's format has them: images whose colours are the ids of segments."""

from collections.abc import Mapping

import numpy as np

from vitadapter.data.image_files import open_image

__all__ = ["VOID", "check_segment_ids", "id_to_rgb", "read_panoptic_png", "rgb_to_id"]

VOID = 0
"""Id of pixels that belong to no segment."""


def rgb_to_id(colours: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 to ids (...) int32: R + 256 G + 256^2 B."""
    return colours.astype(np.int32) @ np.array([1, 256, 256**2], dtype=np.int32)


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Ids (...) to colours (..., 3) uint8, the other way round.

    Raises:
        ValueError: an id outside 0 .. 2^24 - 1.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= 256**3):
        raise ValueError(f"ids must lie in [0, 2^24), got {ids.min()} to {ids.max()}")
    return np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)


def read_panoptic_png(file_name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The colours (H, W, 3) uint8 of a panoptic map; see `rgb_to_id`.

    Args:
        file_name: of the map.
        size: (height, width) that it must have; None for any.

    Raises:
        ValueError: not an image, not 8 bit RGB, or another size; names the file.
    """
    try:
        with open_image(file_name) as stored:
            stored.load()
            mode, colours = stored.mode, np.asarray(stored)
    except ValueError as error:
        raise ValueError(f"the panoptic map {error}") from error
    # A palette or 16 bit grey could only hold ids in a way that nobody has agreed upon.
    if mode != "RGB":
        raise ValueError(
            f"the panoptic map {file_name} must be an RGB image of 8 bit per channel, "
            f"got the mode {mode}"
        )
    if size is not None and colours.shape[:2] != tuple(size):
        raise ValueError(
            f"the panoptic map {file_name} must have its image's (height, width) {tuple(size)}, "
            f"got {colours.shape[:2]}"
        )
    return colours


def check_segment_ids(ids: np.ndarray, record: Mapping[str, object]) -> None:
    """Refuses a map with a segment that its annotation does not tell of.

    Args:
        ids: (H, W), of the map.
        record: with "pan_seg_file_name" and "segments_info".

    Raises:
        ValueError: an unknown segment; names the file.
    """
    unknown = np.setdiff1d(ids, [VOID, *(segment["id"] for segment in record["segments_info"])])
    if unknown.size:
        named = ", ".join(map(str, unknown[:5].tolist()))
        raise ValueError(
            f"the panoptic map {record['pan_seg_file_name']} has segments that its annotation "
            f"does not list: {named}{', ...' if unknown.size > 5 else ''}"
        )
