"""Pre-trained nets of the `*_finetune` experiments: for small images and little data.

Each has settings of the `backbone` over it, mean and deviation of `pixels`, and its `weights`.
"""

from ..pixels import clip, imagenet
from .sizes import all_global
from .timm_vit import dinov3_base as _dinov3_base
from .timm_vit import dinov3_small as _dinov3_small
from .timm_vit import eva02_base as _eva02_base
from .timm_vit import eva02_small as _eva02_small
from .vit import vit_base_dinov2, vit_small_dinov2
from .vit_adapter import vit_adapter_base, vit_adapter_small


def _over(adapter, net, weights, pixels=imagenet):
    net = net.copy()
    # Small images need no windows, and short runs no drop path.
    net.update(all_global, drop_path_rate=0.0)
    backbone = {key: adapter[key] for key in ("deform_num_heads", "deform_ratio")}
    return dict(backbone=dict(net=net, **backbone), pixels=pixels, weights=f"timm://{weights}")


dinov2_small = _over(vit_adapter_small, vit_small_dinov2, "vit_small_patch14_dinov2.lvd142m")
dinov2_base = _over(vit_adapter_base, vit_base_dinov2, "vit_base_patch14_dinov2.lvd142m")
dinov3_small = _over(vit_adapter_small, _dinov3_small, "vit_small_patch16_dinov3.lvd1689m")
dinov3_base = _over(vit_adapter_base, _dinov3_base, "vit_base_patch16_dinov3.lvd1689m")
eva02_small = _over(vit_adapter_small, _eva02_small, "eva02_small_patch14_224.mim_in22k", clip)
eva02_base = _over(vit_adapter_base, _eva02_base, "eva02_base_patch14_224.mim_in22k", clip)
