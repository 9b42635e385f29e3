"""The plain-ViT baseline of the quickstart's semantic task: same net, same head, no adapter."""

from vitadapter.model_zoo import get_config

from .upernet_vit_adapter_t import dataloader, dataset, lr_multiplier, model, optimizer, train

_net = model.backbone.net
model.backbone = get_config("common/models/vit_adapter_global.py").vit_baseline_tiny_global
model.backbone.net = _net
