"""Test-time augmentation of the official `_ms` recipes: six scales, each also flipped.

An experiment takes it with::

    train.inference.tta = get_config("common/tta.py").multi_scale_flip
    dataloader.test.mapper.augmentations = []  # the scales are made from the whole image
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA

from vitadapter.layers.nms import HardNMS
from vitadapter.modeling.test_time_augmentation import DetectorWithTTA

multi_scale_flip = L(DetectorWithTTA)(
    model="${..model}",
    tta_mapper=L(DatasetMapperTTA)(
        min_sizes=[600, 800, 1000, 1200, 1400, 1600], max_size=1600, flip=True
    ),
    nms=L(HardNMS)(iou_threshold=0.5),
    max_detections_per_image=100,
)
