"""The tiny Mask R-CNN with everything that could differ after a resume, for `exact_runs.py`."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from exact_runs import DigestingRCNN

from vitadapter.data.insta_boost import InstaBoost
from vitadapter.data.transforms import RandomChoice, RandomResize

from .tiny_mask_rcnn import dataloader, dataset, lr_multiplier, model, optimizer, train  # noqa: F401

model._target_ = DigestingRCNN
# What random numbers of an iteration decide.
model.roi_heads.batch_size_per_image = 8
model.proposal_generator.batch_size_per_image = 16
model.roi_heads.box_predictor.test_score_thresh = 0.0

dataloader.train.mapper.instance_augmentation = L(InstaBoost)(prob=0.5)
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.RandomBrightness)(intensity_min=0.5, intensity_max=1.5),
    L(RandomChoice)(
        branches=[
            [L(RandomResize)(short=64, long=96, ratio_range=(0.8, 1.2))],
            [L(T.RandomCrop)(crop_type="relative_range", crop_size=(0.6, 0.6))],
        ]
    ),
]
dataloader.train.aspect_ratio_grouping = True
dataloader.train.num_workers = 2

optimizer.lr = 0.02

train.update(max_iter=60, eval_period=6, log_period=4, seed=3, accumulate_steps=2)
train.checkpointer.update(period=5, max_to_keep=3)
train.ema.update(enabled=True, decay=0.9, ramp_iters=10)
train.best_checkpoint.metric = "bbox/AP"
