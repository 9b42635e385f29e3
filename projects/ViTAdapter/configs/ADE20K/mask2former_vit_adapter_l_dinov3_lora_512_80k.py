"""DINOv3 keeps its weights, except for LoRA's updates; adapter and Mask2Former are trained."""

from detectron2.config import LazyCall as L

from vitadapter.modeling.backbone import LoRA

from .mask2former_vit_adapter_l_dinov3_frozen_512_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.net.tuning = [L(LoRA)(rank=16)]
