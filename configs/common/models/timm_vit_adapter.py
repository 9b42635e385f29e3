"""ViT-Adapters over the nets of `timm_vit.py`, with the paper's settings by size.

`*_frozen` is DINOv3's own way of dense prediction: the net stays as it was pre-trained and sees
nothing of the adapter, which reads its features stage by stage, through the net's final norm.
"""

from .timm_vit import (
    dinov2_reg_base,
    dinov2_reg_large,
    dinov2_reg_small,
    dinov3_7b_frozen,
    dinov3_base,
    dinov3_base_frozen,
    dinov3_large,
    dinov3_large_frozen,
    dinov3_small,
    dinov3_small_frozen,
    eva02_base,
    eva02_large,
    siglip2_base,
)
from .vit_adapter import vit_adapter_base, vit_adapter_large, vit_adapter_small

_frozen = dict(freeze_net=True, use_injector=False, vit_feature="stage", feature_norm="net")


def _over(adapter, net, **settings):
    adapter = adapter.copy()
    adapter.update(net=net, **settings)
    return adapter


vit_adapter_dinov3_small = _over(vit_adapter_small, dinov3_small)
vit_adapter_dinov3_base = _over(vit_adapter_base, dinov3_base)
vit_adapter_dinov3_large = _over(vit_adapter_large, dinov3_large)
vit_adapter_dinov3_small_frozen = _over(vit_adapter_small, dinov3_small_frozen, **_frozen)
vit_adapter_dinov3_base_frozen = _over(vit_adapter_base, dinov3_base_frozen, **_frozen)
vit_adapter_dinov3_large_frozen = _over(vit_adapter_large, dinov3_large_frozen, **_frozen)
# 32 heads of 64 channels.
vit_adapter_dinov3_7b_frozen = _over(
    vit_adapter_large, dinov3_7b_frozen, deform_num_heads=32, **_frozen
)
vit_adapter_eva02_base = _over(vit_adapter_base, eva02_base)
vit_adapter_eva02_large = _over(vit_adapter_large, eva02_large)
vit_adapter_dinov2_reg_small = _over(vit_adapter_small, dinov2_reg_small)
vit_adapter_dinov2_reg_base = _over(vit_adapter_base, dinov2_reg_base)
vit_adapter_dinov2_reg_large = _over(vit_adapter_large, dinov2_reg_large)
vit_adapter_siglip2_base = _over(vit_adapter_base, siglip2_base)
