"""Data sets in COCO's instances format."""

from vitadapter.data.coco.annotations import CocoData, read_coco
from vitadapter.data.coco.dataset import (
    add_semantic_maps,
    coco_metadata,
    load_coco_dataset,
    read_registered,
    register_coco,
)

__all__ = [
    "CocoData",
    "add_semantic_maps",
    "coco_metadata",
    "load_coco_dataset",
    "read_coco",
    "read_registered",
    "register_coco",
]
