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
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=7330, max_to_keep=5),
    eval_period=7330,
    log_period=20,
    # How evaluation and prediction run the model; mixed precision of training is `amp`.
    inference=L(InferenceModel)(model=None, amp_dtype=None, tta=None),
    device="cuda" if torch.cuda.is_available() else "cpu",
)
