"""What the training loop needs; the keys are Detectron2's."""

import torch
from detectron2.config import LazyCall as L

from vitadapter.engine.inference import InferenceModel

train = dict(
    output_dir="./output",
    init_checkpoint="",
    # Whether a checkpoint may have less than 90 % of the plain ViT's parameters.
    init_allow_partial=False,
    max_iter=87960,
    # Of the weights, the order of the data and the augmentations; -1 for others at each start.
    seed=-1,
    # Micro-batches of an iteration: as many images take part in it, at less memory.
    accumulate_steps=1,
    # float16 scales the loss, at first by init_scale; bfloat16 does not need to.
    amp=dict(enabled=False, dtype="float16", init_scale=512.0),
    # A moving average of the weights, which is evaluated in their place.
    ema=dict(enabled=False, decay=0.9999, ramp_iters=2000),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=7330, max_to_keep=5),
    # Which value of an evaluation, such as "segm/AP", model_best.pth is to have the best of.
    best_checkpoint=dict(metric=None, mode="max"),
    eval_period=7330,
    log_period=20,
    # How evaluation and prediction run the model; mixed precision of training is `amp`.
    # Test-time augmentation (tta) as in tta.py and sem_seg_tta.py.
    inference=L(InferenceModel)(
        model=None, amp_dtype=None, tta=dict(enabled=False, wrapper=None, overrides=[])
    ),
    device="cuda" if torch.cuda.is_available() else "cpu",
)
