from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_s_deit_3x import dataloader, dataset, lr_multiplier, optimizer, train

model = get_config("common/models/atss_vit_adapter.py").model
model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_small
dataloader.train.dataset.masks = False
dataloader.evaluator.tasks = ["bbox"]
train.amp.enabled = True
# The backbone's stride-4 output is not used.
train.ddp.find_unused_parameters = True
