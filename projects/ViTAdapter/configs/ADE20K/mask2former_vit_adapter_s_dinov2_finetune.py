"""Mask2Former with the net, data and schedule of `upernet_vit_adapter_s_dinov2_finetune`."""

from vitadapter.model_zoo import get_config

from .upernet_vit_adapter_s_dinov2_finetune import (
    dataloader,
    dataset,
    lr_multiplier,
    optimizer,
    train,
)
from .upernet_vit_adapter_s_dinov2_finetune import model as _upernet

model = get_config("common/models/mask2former_vit_adapter.py").model
model.backbone = _upernet.backbone
model.inference = _upernet.inference
model.targets.ignore_value = "${dataset.ignore_label}"
# Masks of 64 x 64 cells need fewer points, and small data sets fewer queries, than the paper's.
model.sem_seg_head.pixel_decoder.update(embed_dim=128, ffn_dim=512, num_layers=3)
model.sem_seg_head.predictor.update(num_queries=50, ffn_dim=512, num_layers=3)
model.criterion.matcher.num_points = 3136
