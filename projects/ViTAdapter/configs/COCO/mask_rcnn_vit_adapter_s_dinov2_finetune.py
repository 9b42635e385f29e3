"""Fine-tuning DINOv2 on little data, small enough for a CPU: any data set in COCO's format.

The net attends globally, as it was pre-trained, and trains at a tenth of the learning rate;
`model.backbone.bottom_up.freeze_net=True` keeps it as it is.
"""

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import CosineParamScheduler

from vitadapter.model_zoo import get_config
from vitadapter.solver import FactorByName, warm_up

from .mask_rcnn_vit_adapter_s_dinov2_3x import dataloader, dataset, model, optimizer, train

_data = get_config("common/data/coco.py")
dataset.resize = _data.small_images
dataloader.train.mapper.augmentations = _data.small_image_augmentations
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = 0
dataloader.test.mapper.augmentations = _data.small_image_test_augmentations
dataloader.test.num_workers = 0

_net = get_config("common/models/finetune.py").dinov2_small
model.backbone.bottom_up.update(_net.backbone)
model.backbone.norm = "LN"
# Half the channels of the 3x config's heads: at this size they cost more than the backbone.
model.backbone.out_channels = 128
model.proposal_generator.head.in_channels = 128
# Objects are as small as the images.
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
model.proposal_generator.pre_nms_topk = (500, 200)
model.proposal_generator.post_nms_topk = (200, 100)
model.roi_heads.batch_size_per_image = 64
model.roi_heads.box_head.input_shape.channels = 128
model.roi_heads.box_head.fc_dims = [512, 512]
model.roi_heads.box_predictor.input_shape.channels = 512
model.roi_heads.mask_head.input_shape.channels = 128
model.roi_heads.mask_head.conv_dims = [128, 128, 128]

# Heads and adapter start from random weights, and fast; the net stays near its own.
optimizer.lr = 1e-3
optimizer.params.lr_factor_func = L(FactorByName)(factors={".net.": 0.1})
lr_multiplier = L(warm_up)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    max_iter="${train.max_iter}",
    warmup_iters=20,
    warmup_factor=0.001,
)
train.max_iter = 600
train.eval_period = 150
train.log_period = 10
train.checkpointer.period = 100
train.checkpointer.max_to_keep = 1
train.seed = 1
train.init_checkpoint = _net.weights
train.inference.tta.wrapper.tta_mapper.update(
    min_sizes="${dataset.resize.train_short}", max_size="${dataset.resize.long}"
)
