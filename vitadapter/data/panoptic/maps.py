"""Reads panoptic maps, whose colours are the ids of segments, for a segmenter."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import BitMasks, Instances

from vitadapter.data.dataset_mapper import RecordMapper, Sample
from vitadapter.data.dataset_source import Record, Segment, first_few
from vitadapter.data.image_files import check_map_size, open_image, read_record_image

__all__ = [
    "VOID",
    "PanopticDatasetMapper",
    "check_segment_ids",
    "id_to_rgb",
    "read_panoptic_png",
    "read_record_map",
    "rgb_to_id",
]

VOID = 0
"""Id of pixels that belong to no segment."""


def rgb_to_id(colours: np.ndarray) -> np.ndarray:
    """Converts colours (..., 3) uint8 to ids (...) int32: R + 256 G + 256^2 B."""
    return colours.astype(np.int32) @ np.array([1, 256, 256**2], dtype=np.int32)


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Converts ids (...) to colours (..., 3) uint8: the inverse of `rgb_to_id`.

    Raises:
        ValueError: an id is outside 0 .. 2^24 - 1.
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
        ValueError: it is not an image, not 8-bit RGB, or has the wrong size; names the file.
    """
    try:
        with open_image(file_name) as stored:
            stored.load()
            mode, colours = stored.mode, np.asarray(stored)
    except ValueError as error:
        raise ValueError(f"the panoptic map {error}") from error
    # There is no convention for ids in a palette or in 16-bit grey.
    if mode != "RGB":
        raise ValueError(
            f"the panoptic map {file_name} must be an RGB image with 8 bits per channel, "
            f"got the mode {mode}"
        )
    if size is not None:
        check_map_size(f"the panoptic map {file_name}", colours, size)
    return colours


def check_segment_ids(ids: np.ndarray, record: Record) -> None:
    """Refuses a map with a segment that its annotation does not list.

    Args:
        ids: (H, W), of the map.
        record: with "pan_seg_file_name" and "segments_info".

    Raises:
        ValueError: there is an unknown segment; names the file.
    """
    unknown = np.setdiff1d(ids, [VOID, *(segment["id"] for segment in record["segments_info"])])
    if unknown.size:
        raise ValueError(
            f"the panoptic map {record['pan_seg_file_name']} has segments that its annotation "
            f"does not list: {first_few(unknown.tolist(), 5)}"
        )


def read_record_map(record: Record, image: np.ndarray) -> np.ndarray:
    """The colours (H, W, 3) uint8 of a record's map.

    Args:
        record: with "pan_seg_file_name" and "segments_info".
        image: (H, W, C), the image that the map belongs to.

    Raises:
        ValueError: see `read_panoptic_png` and `check_segment_ids`.
    """
    size = (image.shape[0], image.shape[1])
    colours = read_panoptic_png(str(record["pan_seg_file_name"]), size)
    check_segment_ids(rgb_to_id(colours), record)
    return colours


class PanopticDatasetMapper(RecordMapper):
    """Maps a data set dict to the input of a panoptic segmenter, such as Mask2Former.

    Test images are mapped without their panoptic map, which the evaluator reads. Augmentations
    that pad must use 0 in segmentation maps, which stands for no segment.
    """

    def map_record(self, record: Sample) -> Sample:
        """Maps one image.

        Args:
            record: with "file_name" and, in training, "pan_seg_file_name" and "segments_info", as
                `load_panoptic_dataset` returns them.

        Returns:
            The record with "image" (3, h, w) uint8, "height" and "width" of the image in its file
            and, in training, "instances" with `gt_classes` and `gt_masks` (BitMasks) of those
            segments, things and stuff, that have a pixel left, but without crowds.
        """
        image = read_record_image(record, self.image_format)
        colours = read_record_map(record, image) if self.is_train else None
        transforms = self.augment(record, image)
        if colours is not None:
            # Colours, not ids, because every transform keeps 8-bit values exactly.
            ids = rgb_to_id(transforms.apply_segmentation(colours))
            record["instances"] = _to_instances(ids, record["segments_info"])
        return record


def _to_instances(ids: np.ndarray, segments: Sequence[Segment]) -> Instances:
    """The segments that a map (h, w) of ids shows."""
    shown = set(np.unique(ids).tolist())
    kept = [s for s in segments if s["id"] in shown and not s.get("iscrowd", 0)]
    classes = [segment["category_id"] for segment in kept]
    kept_ids = torch.tensor([segment["id"] for segment in kept], dtype=torch.int32)
    instances = Instances((ids.shape[0], ids.shape[1]))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.as_tensor(ids) == kept_ids[:, None, None])  # (N, h, w)
    return instances
