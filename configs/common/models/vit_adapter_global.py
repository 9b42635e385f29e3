"""ViT-Adapters and plain-ViT baselines as segmenters use them.

Unlike in detection the nets attend globally, and each level of the pyramid gets the net's output
at its own interaction. AugReg's base has its pre-training size of 384 pixels.
"""

from .sizes import all_global
from .vit_adapter import (
    vit_adapter_base,
    vit_adapter_large,
    vit_adapter_small,
    vit_adapter_tiny,
)
from .vit_baseline import (
    vit_baseline_base,
    vit_baseline_large,
    vit_baseline_small,
    vit_baseline_tiny,
)

vit_adapter_tiny_global = vit_adapter_tiny.copy()
vit_adapter_small_global = vit_adapter_small.copy()
vit_adapter_base_global = vit_adapter_base.copy()
vit_adapter_large_global = vit_adapter_large.copy()
for _adapter in (
    vit_adapter_tiny_global,
    vit_adapter_small_global,
    vit_adapter_base_global,
    vit_adapter_large_global,
):
    _adapter.vit_feature = "stage"
    _adapter.net.update(all_global)

# One interaction, so that all levels get the net's final output, and no FFN.
vit_adapter_base_light_global = vit_adapter_base_global.copy()
vit_adapter_base_light_global.update(
    num_interactions=1, vit_feature="final", ffn_ratio=0, num_extra_extractors=0
)

vit_adapter_base_augreg_global = vit_adapter_base_global.copy()
vit_adapter_base_augreg_global.net.pretrain_img_size = 384

# Drop path as the adapters': no recipe of these baselines was published.
vit_baseline_tiny_global = vit_baseline_tiny.copy()
vit_baseline_small_global = vit_baseline_small.copy()
vit_baseline_base_global = vit_baseline_base.copy()
vit_baseline_large_global = vit_baseline_large.copy()
for _baseline, _adapter in (
    (vit_baseline_tiny_global, vit_adapter_tiny_global),
    (vit_baseline_small_global, vit_adapter_small_global),
    (vit_baseline_base_global, vit_adapter_base_global),
    (vit_baseline_large_global, vit_adapter_large_global),
):
    _baseline.net = _adapter.net
