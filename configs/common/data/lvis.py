"""LVIS v1: rare classes are seen more often, and evaluated by LVIS's rules.

A file in LVIS's format of your own takes the same overrides as a COCO file: `dataset.*`.
"""

from detectron2.config import LazyCall as L
from detectron2.data.samplers import RepeatFactorTrainingSampler

from vitadapter.data.lvis import load_lvis_dataset
from vitadapter.evaluation.lvis import lvis_evaluator

from .coco import dataloader, dataset, large_scale_jitter_augmentations

dataset.num_classes = 1203
dataset.train.name = "lvis_v1_train"
dataset.test.name = "lvis_v1_val"

dataloader.train.dataset._target_ = load_lvis_dataset
dataloader.test.dataset._target_ = load_lvis_dataset
# The images of a class that is in a share f of them are repeated sqrt(repeat_thresh / f) times.
dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.001
    )
)
dataloader.train.mapper.augmentations = large_scale_jitter_augmentations
dataloader.train.mapper.recompute_boxes = True
dataloader.evaluator = L(lvis_evaluator)(
    name="${dataset.test.name}",
    json_file="${dataset.test.json_file}",
    image_root="${dataset.test.image_root}",
    output_dir="${train.output_dir}/inference",
    max_dets_per_image=300,
    plot_curves=True,
)
