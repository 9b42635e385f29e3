"""Layers that Detectron2 lacks."""

from vitadapter.layers.ms_deform_attn import MSDeformAttn, ms_deform_attn
from vitadapter.layers.ms_deform_attn_reference import ms_deform_attn_reference

__all__ = ["MSDeformAttn", "ms_deform_attn", "ms_deform_attn_reference"]
