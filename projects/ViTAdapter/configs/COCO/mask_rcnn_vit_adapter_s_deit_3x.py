from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_s_deit_1x import dataloader, dataset, model, optimizer, train

dataloader.train.mapper.augmentations = get_config("common/data/coco.py").multi_scale_augmentations
lr_multiplier = get_config("common/schedule.py").schedule_3x
train.max_iter = 263880
