"""The paper's baselines over the nets of `vit.py`: "ViT" and "ViTDet" rows of table 1."""

from detectron2.config import LazyCall as L

from vitadapter.modeling.backbone import ViTBaseline, ViTSpatialPrior
from vitadapter.ops import MSDeformAttn

from .vit import vit_base, vit_large, vit_small, vit_tiny

# The official baselines use drop path 0.1 for all sizes but large.
vit_baseline_tiny = L(ViTBaseline)(net=vit_tiny, block_indexes=[2, 5, 8, 11])
vit_baseline_small = L(ViTBaseline)(net=vit_small, block_indexes=[2, 5, 8, 11])
vit_baseline_small.net.drop_path_rate = 0.1
vit_baseline_base = L(ViTBaseline)(net=vit_base, block_indexes=[2, 5, 8, 11])
vit_baseline_base.net.drop_path_rate = 0.1
vit_baseline_large = L(ViTBaseline)(net=vit_large, block_indexes=[5, 11, 17, 23])

# ViTDet as the paper counts its parameters: convolutional propagation after four blocks, the
# pyramid made of the last block alone.
vitdet_tiny, vitdet_small, vitdet_base, vitdet_large = (
    baseline.copy()
    for baseline in (vit_baseline_tiny, vit_baseline_small, vit_baseline_base, vit_baseline_large)
)
for _vitdet in (vitdet_tiny, vitdet_small, vitdet_base, vitdet_large):
    _vitdet.net.residual_block_indexes = _vitdet.block_indexes
    _vitdet.block_indexes = [_vitdet.net.depth - 1]

# "Variant 2" of the paper's table 6; attention=None makes it "variant 1". The baseline's net.
vit_spatial_prior_small = L(ViTSpatialPrior)(
    net=vit_baseline_small.net.copy(),
    block_indexes=[2, 5, 8, 11],
    num_interactions=4,
    conv_dim=64,
    num_points=4,
    deform_num_heads=6,
    deform_ratio=1.0,
    prior_norm="SyncBN",
    attention=MSDeformAttn,
)
