"""Loads checkpoints of other projects and of this one.

A file reaches a model in four steps: `reading.py` reads it as data, `families` recognises its
origin and converts its names, `fitting.py` brings its tensors to the model's shapes, and
`loading.py` checks the result, reports it and copies it into the model.
"""

import vitadapter.detectron2_required  # noqa: F401

from .families import FAMILIES, find_family, recognise
from .families.augreg import convert_augreg
from .families.beit import convert_beit
from .families.dinov3 import convert_dinov3
from .families.eva02 import convert_eva02
from .families.plain_vit import convert_dinov2, convert_timm_vit
from .families.uni_perceiver import convert_uni_perceiver
from .families.vitdet import convert_eva02_det, convert_vitdet
from .family import Conversion, Family
from .fitting import resize_patch_kernel, resize_pos_embed, resize_relative_position_bias_table
from .loading import LoadPlan, LoadReport, check_plan, plan_load
from .official.conversion import (
    OfficialLayout,
    convert_official,
    convert_official_backbone,
    export_official,
    export_official_backbone,
)
from .official.layouts import LAYOUTS
from .reading import read_checkpoint_file, read_state_dict
from .sources import fetch, is_remote

__all__ = [
    "FAMILIES",
    "LAYOUTS",
    "Conversion",
    "Family",
    "LoadPlan",
    "LoadReport",
    "OfficialLayout",
    "check_plan",
    "convert_augreg",
    "convert_beit",
    "convert_dinov2",
    "convert_dinov3",
    "convert_eva02",
    "convert_eva02_det",
    "convert_official",
    "convert_official_backbone",
    "convert_timm_vit",
    "convert_uni_perceiver",
    "convert_vitdet",
    "export_official",
    "export_official_backbone",
    "fetch",
    "find_family",
    "is_remote",
    "plan_load",
    "read_checkpoint_file",
    "read_state_dict",
    "recognise",
    "resize_patch_kernel",
    "resize_pos_embed",
    "resize_relative_position_bias_table",
]
