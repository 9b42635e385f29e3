"""Test-time augmentation of detectors: several scales, each also flipped.

An experiment brings it along, and `train.inference.tta.enabled=True` switches it on::

    train.inference.tta = get_config("common/tta.py").multi_scale_flip
"""

import math

from detectron2.config import LazyCall as L
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA

from vitadapter.layers.nms import HardNMS
from vitadapter.layers.soft_nms import SoftNMS
from vitadapter.modeling.inference import DetectorWithTTA, ScaleRangeMapperTTA

# For any detector and any scales.
multi_scale_flip = dict(
    enabled=False,
    wrapper=L(DetectorWithTTA)(
        model=None,  # the model that is evaluated
        tta_mapper=L(DatasetMapperTTA)(
            min_sizes=[600, 800, 1000, 1200, 1400, 1600], max_size=1600, flip=True
        ),
        nms=L(HardNMS)(iou_threshold=0.5),
        max_detections_per_image=100,
    ),
    # What else of the config it sets, besides that test images come whole.
    overrides=[],
)

# Of HTC++'s official tests. COCO's bounds of small, medium and large objects, square pixels:
_small, _medium = 32**2, 96**2
official_multi_scale_flip = dict(
    enabled=False,
    wrapper=L(DetectorWithTTA)(
        model=None,
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
    ),
    overrides=[],
)
