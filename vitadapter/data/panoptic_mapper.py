"""Images and panoptic maps to the input of a panoptic segmenter."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances

from vitadapter.data.dataset_mapper import DatasetMapper
from vitadapter.data.image_files import read_record_image
from vitadapter.data.panoptic_maps import check_segment_ids, read_panoptic_png, rgb_to_id
from vitadapter.data.transforms import augment

__all__ = ["PanopticDatasetMapper"]


class PanopticDatasetMapper(DatasetMapper):
    """Maps a data set dict to the input of a panoptic segmenter, such as Mask2Former.

    As for detectors, a training image of which anything fails (unreadable, a map of another size,
    a segment that is not annotated) is named in one warning and skipped; at test time it is an
    error. Test images pass without their map, which the evaluator reads.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        max_skipped: int = 100,
    ) -> None:
        """
        Args:
            is_train: training or inference.
            augmentations: applied in this order; those that pad must do so with 0 in segmentation
                maps, which is no segment.
            image_format: "RGB" or "BGR", as the model's pixel statistics ask.
            max_skipped: number of different unusable images after which a worker gives up.

        Raises:
            ValueError: `max_skipped` is not positive.
        """
        super().__init__(
            is_train,
            augmentations=augmentations,
            image_format=image_format,
            max_skipped=max_skipped,
        )

    def map_record(self, record: dict[str, object]) -> dict[str, object]:
        """
        Args:
            record: with "file_name" and, in training, "pan_seg_file_name" and "segments_info", as
                `load_panoptic_dataset` returns them.

        Returns:
            dict: with "image" `(3, h, w)` uint8, "height" and "width" of the image in its file
            and, in training, "instances" with `gt_classes` and `gt_masks` (BitMasks) of the
            segments, things and stuff, that have a pixel left; crowds are none.
        """
        image = read_record_image(record, self.image_format)
        colours = self._read_map(record, image) if self.is_train else None
        record["height"], record["width"] = image.shape[:2]
        augmented = augment(self.augmentations, image)
        record["image"] = augmented.image
        if colours is not None:
            # Colours, not ids: resizing keeps 8 bit values as they are, whatever their number.
            ids = rgb_to_id(augmented.transforms.apply_segmentation(colours))
            record["instances"] = _to_instances(ids, record["segments_info"])
        return record

    def _read_map(self, record: Mapping[str, object], image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        colours = read_panoptic_png(str(record["pan_seg_file_name"]), (height, width))
        check_segment_ids(rgb_to_id(colours), record)
        return colours


def _to_instances(ids: np.ndarray, segments: Sequence[Mapping[str, object]]) -> Instances:
    """Map (h, w) of segment ids to the segments that it shows."""
    shown = set(np.unique(ids).tolist())
    kept = [s for s in segments if s["id"] in shown and not s.get("iscrowd", 0)]
    classes = [segment["category_id"] for segment in kept]
    kept_ids = torch.tensor([segment["id"] for segment in kept], dtype=torch.int32)
    instances = Instances((ids.shape[0], ids.shape[1]))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.as_tensor(ids) == kept_ids[:, None, None])  # (N, h, w)
    return instances
