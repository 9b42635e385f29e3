"""Converters: pure functions from a foreign state dict to ours, one file per family."""

from .beit import convert_beit
from .beit_tables import resize_relative_position_bias_table
from .official import convert_official_backbone
from .uni_perceiver import convert_uni_perceiver

__all__ = [
    "convert_beit",
    "convert_official_backbone",
    "convert_uni_perceiver",
    "resize_relative_position_bias_table",
]
