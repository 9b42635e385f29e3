"""Fine-tuning DINOv2 on little data, small enough for a CPU: any folders of images and labels.

The net's features are normalised before they are added, and it trains at 3 % of the learning rate:
on some tens of images, both helped (projects/ViTAdapter/docs/study.md, "At small size").
`model.backbone.freeze_net=True` keeps it as it is.
"""

from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import FactorByName

from .upernet_vit_adapter_s_deit_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataset.reduce_zero_label = False
dataset.resize.update(short=256, long=1024)
dataset.crop.update(size=256, stride=170)
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 0
dataloader.test.num_workers = 0

_net = get_config("common/models/finetune.py").dinov2_small
model.backbone.update(_net.backbone)
model.backbone.feature_norm = "net"
model.sem_seg_head.head.channels = 128
model.sem_seg_head.auxiliary_head.channels = 64

# Heads and adapter start from random weights, and fast; the net stays near its own.
optimizer.lr = 1e-3
optimizer.params.lr_factor_func = L(FactorByName)(factors={".net.": 0.03})
lr_multiplier.warmup_iters = 20
lr_multiplier.warmup_factor = 0.001
train.amp.enabled = False
train.max_iter = 240
train.eval_period = 60
train.log_period = 5
train.checkpointer.update(period=60, max_to_keep=1)
train.seed = 1
train.init_checkpoint = _net.weights
