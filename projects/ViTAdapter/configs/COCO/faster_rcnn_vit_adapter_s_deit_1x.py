from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_s_deit_1x import dataloader, dataset, lr_multiplier, optimizer, train

model = get_config("common/models/faster_rcnn_vit_adapter.py").model
model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_small
dataloader.train.dataset.masks = False
dataloader.evaluator.tasks = ["bbox"]
