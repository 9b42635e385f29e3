"""Learning-rate schedules over `train.max_iter` iterations: steps are fractions of the whole."""

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    PolynomialDecayParamScheduler,
)

from vitadapter.solver import PerEpoch, warm_up

# 12 epochs of COCO; milestones in epochs.
schedule_1x = L(warm_up)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[8, 11], num_updates=12
    ),
    max_iter="${train.max_iter}",
    warmup_iters=500,
    warmup_factor=0.001,
)

schedule_3x = L(warm_up)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[27, 33], num_updates=36
    ),
    max_iter="${train.max_iter}",
    warmup_iters=500,
    warmup_factor=0.001,
)

# Large-scale jitter: half a cosine down to a hundredth, in steps of an epoch.
schedule_cosine = L(warm_up)(
    scheduler=L(PerEpoch)(
        scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01), epochs=25
    ),
    max_iter="${train.max_iter}",
    warmup_iters=2000,
    warmup_factor=0.001,
)

# Segmentation: linearly down to nothing.
schedule_poly = L(warm_up)(
    scheduler=L(PolynomialDecayParamScheduler)(base_value=1.0, power=1.0),
    max_iter="${train.max_iter}",
    warmup_iters=1500,
    warmup_factor=1e-6,
)
