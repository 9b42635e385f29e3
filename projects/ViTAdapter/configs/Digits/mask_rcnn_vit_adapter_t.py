"""The quickstart: ViT-Adapter-T from scratch on the sample data set, minutes on two CPU cores."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import LinearParamScheduler

from vitadapter.model_zoo import get_config
from vitadapter.solver import warm_up

_data = get_config("common/data/coco.py")
dataset, dataloader = _data.dataset, _data.dataloader
dataset.num_classes = 10
dataset.train = dict(
    name="digits_train",
    json_file="datasets/digits/annotations/instances_train.json",
    image_root="datasets/digits/train",
)
dataset.test = dict(
    name="digits_val",
    json_file="datasets/digits/annotations/instances_val.json",
    image_root="datasets/digits/val",
)
# Digits are not flipped: a mirrored 3 is no 3.
dataloader.train.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=(128,), sample_style="choice", max_size=256)
]
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 0
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=128, max_size=256)
]
dataloader.test.num_workers = 0

model = get_config("common/models/mask_rcnn_vit_adapter.py").model
_net = model.backbone.bottom_up.net
_net.drop_path_rate = 0.0
# 8 x 8 tokens fit into one window.
_net.window_size = 0
_net.window_block_indexes = []
_net.pretrain_img_size = 128
model.backbone.out_channels = 128
model.backbone.norm = "LN"
model.proposal_generator.head.in_channels = 128
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
model.proposal_generator.pre_nms_topk = (500, 200)
model.proposal_generator.post_nms_topk = (200, 100)
model.roi_heads.batch_size_per_image = 64
model.roi_heads.box_head.input_shape.channels = 128
model.roi_heads.box_head.fc_dims = [256, 256]
model.roi_heads.box_predictor.input_shape.channels = 256
model.roi_heads.mask_head.input_shape.channels = 128
model.roi_heads.mask_head.conv_dims = [128, 128, 128]

optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 1e-3
lr_multiplier = L(warm_up)(
    scheduler=L(LinearParamScheduler)(start_value=1.0, end_value=0.0),
    max_iter="${train.max_iter}",
    warmup_iters=50,
    warmup_factor=0.001,
)
train = get_config("common/train.py").train
train.max_iter = 900
train.eval_period = 0
train.log_period = 10
train.checkpointer.period = 100
train.checkpointer.max_to_keep = 2
train.seed = 1
