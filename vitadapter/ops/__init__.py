"""Multi-scale deformable attention: operators (see `kernels/README.md`), reference and module."""

from vitadapter.ops.module import MSDeformAttn, MSDeformAttnReference, cell_centres
from vitadapter.ops.ms_deform_attn import (
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)

__all__ = [
    "MSDeformAttn",
    "MSDeformAttnReference",
    "cell_centres",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_reference",
]
