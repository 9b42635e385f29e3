"""Fine-tuning DINOv2 on little data, small enough for a CPU: any data set in COCO's format.

The net attends globally, as it was pre-trained, and trains with layer-wise decay;
`model.backbone.bottom_up.freeze_net=True` keeps it as it is.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import CosineParamScheduler

from vitadapter.solver import warm_up

from .mask_rcnn_vit_adapter_s_dinov2_3x import dataloader, dataset, model, optimizer, train

_short_edges = (256, 288, 320)
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.ResizeShortestEdge)(short_edge_length=_short_edges, sample_style="choice", max_size=448),
]
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 0
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=320, max_size=448)
]
dataloader.test.num_workers = 0

model.backbone.bottom_up.net.window_size = 0
model.backbone.bottom_up.net.window_block_indexes = []
model.backbone.bottom_up.net.drop_path_rate = 0.0
model.backbone.norm = "LN"
model.roi_heads.batch_size_per_image = 128

optimizer.lr = 2e-4
lr_multiplier = L(warm_up)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    max_iter="${train.max_iter}",
    warmup_iters=20,
    warmup_factor=0.001,
)
train.max_iter = 300
train.eval_period = 60
train.log_period = 5
train.checkpointer.period = 100
train.checkpointer.max_to_keep = 1
train.seed = 1
train.init_checkpoint = "timm://vit_small_patch14_dinov2.lvd142m"
train.output_dir = "./output/mask_rcnn_vit_adapter_s_dinov2_finetune"
