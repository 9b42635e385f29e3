"""Uni-Perceiver's image encoder, base and large, and ViT-Adapters over it."""

from functools import partial

from detectron2.config import LazyCall as L
from torch import nn

from vitadapter.modeling.backbone import UniPerceiver

from .vit_adapter import vit_adapter_base, vit_adapter_large

# Detection: every third (large: sixth) block attends globally.
uni_perceiver_base = L(UniPerceiver)(
    patch_size=16,
    embed_dim=768,
    depth=12,
    num_heads=12,
    drop_path_rate=0.2,
    norm_layer=partial(nn.LayerNorm, eps=1e-5),
    window_size=14,
    window_block_indexes=[i for i in range(12) if i % 3 != 2],
    layer_scale_init=0.0,
    pretrain_img_size=224,
    use_act_checkpoint=False,
    out_feature="last_feat",
)

uni_perceiver_large = uni_perceiver_base.copy()
uni_perceiver_large.update(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    drop_path_rate=0.4,
    window_block_indexes=[i for i in range(24) if i % 6 != 5],
)

# Segmentation: global attention.
uni_perceiver_large_global = uni_perceiver_large.copy()
uni_perceiver_large_global.update(window_size=0, window_block_indexes=[])

# The adapter's norms are the encoder's.
vit_adapter_uni_perceiver_base = vit_adapter_base.copy()
vit_adapter_uni_perceiver_base.update(
    net=uni_perceiver_base, norm_layer=partial(nn.LayerNorm, eps=1e-5)
)
vit_adapter_uni_perceiver_large = vit_adapter_large.copy()
vit_adapter_uni_perceiver_large.update(
    net=uni_perceiver_large, norm_layer=partial(nn.LayerNorm, eps=1e-5)
)

vit_adapter_uni_perceiver_large_global = vit_adapter_uni_perceiver_large.copy()
vit_adapter_uni_perceiver_large_global.update(net=uni_perceiver_large_global, vit_feature="stage")
