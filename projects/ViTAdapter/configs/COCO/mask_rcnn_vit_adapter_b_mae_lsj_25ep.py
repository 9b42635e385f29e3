from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_s_deit_1x import dataloader, dataset, model, optimizer, train

model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_base
model.backbone.bottom_up.num_extra_extractors = 0
model.backbone.bottom_up.net.drop_path_rate = 0.1
model.backbone.bottom_up.net.layer_scale_init = None
# ViTDet's heavier heads
model.backbone.norm = "SyncBN"
model.proposal_generator.head.conv_dims = [-1, -1]
model.roi_heads.box_head.conv_dims = [256, 256, 256, 256]
model.roi_heads.box_head.fc_dims = [1024]
model.roi_heads.box_head.conv_norm = "SyncBN"
model.roi_heads.mask_head.conv_norm = "SyncBN"

dataloader.train.mapper.augmentations = get_config(
    "common/data/coco.py"
).large_scale_jitter_augmentations
dataloader.train.mapper.recompute_boxes = True
lr_multiplier = get_config("common/schedule.py").schedule_cosine
train.max_iter = 183250
train.amp.enabled = True
train.init_checkpoint = "timm://vit_base_patch16_224.mae"
