"""Panoptic segmentation data sets in COCO's panoptic format."""

from vitadapter.data.panoptic.dataset import (
    load_panoptic_dataset,
    panoptic_metadata,
    register_panoptic,
)
from vitadapter.data.panoptic.maps import PanopticDatasetMapper

__all__ = [
    "PanopticDatasetMapper",
    "load_panoptic_dataset",
    "panoptic_metadata",
    "register_panoptic",
]
