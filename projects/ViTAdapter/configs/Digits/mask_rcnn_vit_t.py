"""The quickstart's plain-ViT baseline: same net, same heads, no adapter."""

from vitadapter.model_zoo import get_config

from .mask_rcnn_vit_adapter_t import dataloader, dataset, lr_multiplier, model, optimizer, train

_net = model.backbone.bottom_up.net
model.backbone.bottom_up = get_config("common/models/vit_baseline.py").vit_baseline_tiny
model.backbone.bottom_up.net = _net
