"""Layers that Detectron2 lacks."""

from vitadapter.layers.ms_deform_attn import ms_deform_attn
from vitadapter.layers.ms_deform_attn_fused import ms_deform_attn_fused
from vitadapter.layers.ms_deform_attn_fused_reference import ms_deform_attn_fused_reference
from vitadapter.layers.ms_deform_attn_module import MSDeformAttn, MSDeformAttnReference
from vitadapter.layers.ms_deform_attn_reference import ms_deform_attn_reference

__all__ = [
    "MSDeformAttn",
    "MSDeformAttnReference",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_reference",
]
