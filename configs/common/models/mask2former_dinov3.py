"""Mask2Former on frozen DINOv3 with ViT-Adapters, small to large.

What is trained is the adapter and the head. Weights come from `train.init_checkpoint`, such as
"timm://vit_small_patch16_dinov3.lvd1689m".
"""

from .mask2former_vit_adapter import model, model_panoptic
from .timm_vit_adapter import (
    vit_adapter_dinov3_base_frozen,
    vit_adapter_dinov3_large_frozen,
    vit_adapter_dinov3_small_frozen,
)

model_small = model.copy()
model_small.backbone = vit_adapter_dinov3_small_frozen

model_base = model.copy()
model_base.backbone = vit_adapter_dinov3_base_frozen

model_large = model.copy()
model_large.backbone = vit_adapter_dinov3_large_frozen

model_panoptic_small = model_panoptic.copy()
model_panoptic_small.backbone = vit_adapter_dinov3_small_frozen

model_panoptic_base = model_panoptic.copy()
model_panoptic_base.backbone = vit_adapter_dinov3_base_frozen

model_panoptic_large = model_panoptic.copy()
model_panoptic_large.backbone = vit_adapter_dinov3_large_frozen
