"""ViT-Adapters of the paper, tiny to large (paper table 10), over the nets of `vit.py`."""

from detectron2.config import LazyCall as L

from vitadapter.layers import MSDeformAttn
from vitadapter.modeling.backbone import ViTAdapter

from .vit import vit_base, vit_large, vit_small, vit_tiny

vit_adapter_tiny = L(ViTAdapter)(
    net=vit_tiny,
    num_interactions=4,
    conv_dim=64,
    num_points=4,
    deform_num_heads=6,
    deform_ratio=1.0,
    ffn_ratio=0.25,
    drop_path_rate="${.net.drop_path_rate}",
    num_extra_extractors=2,
    norm="SyncBN",
    vit_feature="final",
    feature_norm=None,
    use_injector=True,
    freeze_net=False,
    attention=MSDeformAttn,
    use_act_checkpoint="${.net.use_act_checkpoint}",
)

vit_adapter_small = vit_adapter_tiny.copy()
vit_adapter_small.net = vit_small

vit_adapter_base = vit_adapter_tiny.copy()
vit_adapter_base.update(net=vit_base, deform_num_heads=12, deform_ratio=0.5)

vit_adapter_large = vit_adapter_tiny.copy()
vit_adapter_large.update(net=vit_large, deform_num_heads=16, deform_ratio=0.5)
