"""Plain ViTs of the paper, tiny to large, with window attention and layer scale as trained."""

from functools import partial

from detectron2.config import LazyCall as L
from torch import nn

from vitadapter.modeling.backbone import ViT

from .sizes import base, large, small, tiny

vit_base = L(ViT)(
    **base,
    img_size=1024,
    patch_size=16,
    residual_block_indexes=[],
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    pretrain_img_size=224,
    use_act_checkpoint=False,
    out_feature="last_feat",
    pad_after_qkv=True,
    layer_scale_init=1.0,
)

vit_tiny = vit_base.copy()
vit_tiny.update(tiny)

vit_small = vit_base.copy()
vit_small.update(small)

# AugReg, pre-trained at 384 pixels.
vit_large = vit_base.copy()
vit_large.update(**large, pretrain_img_size=384)

# DINOv2 at patch size 16: the 37 x 37 position embeddings of 518 pixels at patch size 14.
vit_small_dinov2, vit_base_dinov2, vit_large_dinov2 = (
    net.copy() for net in (vit_small, vit_base, vit_large)
)
for _net in (vit_small_dinov2, vit_base_dinov2, vit_large_dinov2):
    _net.pretrain_img_size = 592
