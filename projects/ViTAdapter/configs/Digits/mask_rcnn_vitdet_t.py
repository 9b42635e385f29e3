"""The quickstart's ViTDet baseline: simple feature pyramid over the same net, same heads."""

from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_t import dataloader, dataset, lr_multiplier, model, optimizer, train

_net = model.backbone.bottom_up.net
model.backbone = get_config("common/models/mask_rcnn_vitdet.py").model.backbone
model.backbone.net = _net
model.backbone.out_channels = 128
