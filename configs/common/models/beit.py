"""BEiT and BEiTv2, base and large, as the official detectors and segmenters use them."""

from functools import partial

from detectron2.config import LazyCall as L
from torch import nn

from vitadapter.modeling.backbone import BEiT, ViTBaseline

from .sizes import all_global, base, large
from .vit_adapter import vit_adapter_base, vit_adapter_large

# Detection: windows of 14 tokens, of 56 in the other blocks, no class token.
beit_base = L(BEiT)(
    **base,
    img_size=224,
    patch_size=16,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    use_cls_token=False,
    global_window_size=56,
    layer_scale_init=1e-6,
    use_act_checkpoint=False,
    out_feature="last_feat",
)
beit_base.drop_path_rate = 0.2

beit_large = beit_base.copy()
beit_large.update(large)

# Segmentation: class token and global attention; img_size is the crop that it is trained with.
_global = dict(**all_global, img_size=512, use_cls_token=True, global_window_size=0)
beit_base_global = beit_base.copy()
beit_base_global.update(**_global)
beit_large_global = beit_large.copy()
beit_large_global.update(**_global, drop_path_rate=0.3)

# In the official code one number is the initial value of BEiT's layer scale and of the injectors.
vit_adapter_beit_base = vit_adapter_base.copy()
vit_adapter_beit_base.update(net=beit_base, injector_gamma_init=1e-6)
vit_adapter_beit_large = vit_adapter_large.copy()
vit_adapter_beit_large.update(net=beit_large, injector_gamma_init=1e-6)

vit_adapter_beit_base_global = vit_adapter_beit_base.copy()
vit_adapter_beit_base_global.update(net=beit_base_global, vit_feature="stage")
vit_adapter_beit_large_global = vit_adapter_beit_large.copy()
vit_adapter_beit_large_global.update(net=beit_large_global, vit_feature="stage")

vit_baseline_beit_large_global = L(ViTBaseline)(
    net=beit_large_global, block_indexes=[7, 11, 15, 23], norm_layer=None, norm="SyncBN"
)
vit_baseline_beit_large_global.net.drop_path_rate = 0.2
