"""Uni-Perceiver's image encoder, base and large, and ViT-Adapters over it."""

from functools import partial

from detectron2.config import LazyCall as L
from torch import nn

from vitadapter.modeling.backbone import UniPerceiver

from .sizes import all_global, base, large
from .vit_adapter import vit_adapter_base, vit_adapter_large

# Detection.
uni_perceiver_base = L(UniPerceiver)(
    **base,
    patch_size=16,
    norm_layer=partial(nn.LayerNorm, eps=1e-5),
    layer_scale_init=0.0,
    pretrain_img_size=224,
    use_act_checkpoint=False,
    out_feature="last_feat",
)
uni_perceiver_base.drop_path_rate = 0.2

uni_perceiver_large = uni_perceiver_base.copy()
uni_perceiver_large.update(large)

# Segmentation: global attention.
uni_perceiver_large_global = uni_perceiver_large.copy()
uni_perceiver_large_global.update(all_global)

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
