"""What the training loop needs for 160k iterations of segmentation."""

from .sem_seg_tta import multi_scale_flip
from .train import train

train.max_iter = 160_000
train.eval_period = 16_000
train.checkpointer.update(period=2_000, max_to_keep=2)
train.inference.tta = multi_scale_flip
