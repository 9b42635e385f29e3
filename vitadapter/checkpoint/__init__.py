"""Checkpoints of other projects and of this one: read, recognised, converted, fitted, reported.

Converters are pure functions from a state dict to a state dict, one file per family; `families.py`
lists them, and `loading.py` puts them to work for `train.init_checkpoint`.
"""

from .augreg import convert_augreg
from .beit import convert_beit
from .beit_tables import resize_relative_position_bias_table
from .dinov3 import convert_dinov3
from .eva02 import convert_eva02
from .families import FAMILIES, find_family, recognise
from .family import Conversion, Family
from .official import convert_official_backbone, export_official_backbone
from .official_detectors import LAYOUTS, OfficialLayout, convert_official, export_official
from .plain_vit import convert_dinov2, convert_mae, convert_timm_vit
from .reading import read_checkpoint_file, read_state_dict
from .resizing import resize_patch_kernel, resize_pos_embed
from .sources import fetch
from .uni_perceiver import convert_uni_perceiver

__all__ = [
    "FAMILIES",
    "LAYOUTS",
    "Conversion",
    "Family",
    "OfficialLayout",
    "convert_augreg",
    "convert_beit",
    "convert_dinov2",
    "convert_dinov3",
    "convert_eva02",
    "convert_mae",
    "convert_official",
    "convert_official_backbone",
    "convert_timm_vit",
    "convert_uni_perceiver",
    "export_official",
    "export_official_backbone",
    "fetch",
    "find_family",
    "read_checkpoint_file",
    "read_state_dict",
    "recognise",
    "resize_patch_kernel",
    "resize_pos_embed",
    "resize_relative_position_bias_table",
]
