"""Test-time augmentation of detectors: several scales, each also flipped.

An experiment takes one with::

    train.inference.tta = get_config("common/tta.py").multi_scale_flip
    dataloader.test.mapper.augmentations = []  # the scales are made from the whole image
"""

import math

from detectron2.config import LazyCall as L
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA

from vitadapter.layers.nms import HardNMS
from vitadapter.layers.soft_nms import SoftNMS
from vitadapter.modeling.inference import DetectorWithTTA, ScaleRangeMapperTTA

# For any detector and any scales.
multi_scale_flip = L(DetectorWithTTA)(
    model="${..model}",
    tta_mapper=L(DatasetMapperTTA)(
        min_sizes=[600, 800, 1000, 1200, 1400, 1600], max_size=1600, flip=True
    ),
    nms=L(HardNMS)(iou_threshold=0.5),
    max_detections_per_image=100,
)

# Of the official `_ms` recipes. COCO's bounds of small, medium and large objects, square pixels:
_small, _medium = 32**2, 96**2
official_multi_scale_flip = L(DetectorWithTTA)(
    model="${..model}",
    tta_mapper=L(ScaleRangeMapperTTA)(
        min_sizes=[600, 800, 1000, 1200, 1400, 1600],
        max_size=3000,
        flip=True,
        area_ranges=[
            (_medium, math.inf),
            (_medium, math.inf),
            (_small, math.inf),
            (0, _medium),
            (0, _medium),
            (0, _medium),
        ],
    ),
    nms=L(SoftNMS)(min_score=0.001),
    max_detections_per_image=1000,
)
