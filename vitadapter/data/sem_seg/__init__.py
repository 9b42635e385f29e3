"""Semantic segmentation data sets: those of the paper by name, others by their folders."""

from vitadapter.data.sem_seg.dataset import (
    load_sem_seg_dataset,
    register_sem_seg,
    sem_seg_metadata,
)
from vitadapter.data.sem_seg.labels import LabelReader, SemSegDatasetMapper

__all__ = [
    "LabelReader",
    "SemSegDatasetMapper",
    "load_sem_seg_dataset",
    "register_sem_seg",
    "sem_seg_metadata",
]
