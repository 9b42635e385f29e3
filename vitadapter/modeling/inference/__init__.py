"""Inference in several passes: batches of one size, windows, tiles, test-time augmentation."""

from .detector_tta import DetectorWithTTA, ScaleRangeMapperTTA
from .same_size_batches import predict_by_size
from .semantic_tta import SemanticSegmentorWithTTA
from .sliding_window import SlidingWindow, window_starts
from .tiled_inference import TiledInference
from .tiles import Tiles

__all__ = [
    "DetectorWithTTA",
    "ScaleRangeMapperTTA",
    "SemanticSegmentorWithTTA",
    "SlidingWindow",
    "TiledInference",
    "Tiles",
    "predict_by_size",
    "window_starts",
]
