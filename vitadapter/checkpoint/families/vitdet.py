"""ViTDet (arXiv 2203.16527): detectors of Detectron2's model zoo and of EVA-02, and ours.

Detectron2's ViT, simple feature pyramid and heads are what ours are made of, so that names are
equal. EVA-02's detectors come from a fork of Detectron2, whose net has EVA-02's own names.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from vitadapter.checkpoint.families.eva02 import RENAMED_SEPARATE
from vitadapter.checkpoint.family import ROPE, Conversion, Converter, Family, convert_names

__all__ = ["EVA02_DET", "VITDET", "convert_eva02_det", "convert_vitdet"]

_BACKBONE = "backbone"
_PYRAMID = re.compile(r"backbone\.simfp_\d+\.")
_DROPPED = {
    r"(pixel_mean|pixel_std)$": "follows from the config",
    r"proposal_generator\.anchor_generator\.cell_anchors\.": "follows from the config",
}
_EVA02_DROPPED = {r"backbone\.net\.(blocks\.\d+\.attn\.)?rope(_win|_glb)?\.": ROPE}
_EVA02 = re.compile(r"backbone\.net\.blocks\.0\.(mlp\.w3|attn\.q_bias)")
_OTHER_PYRAMID = "of the simple feature pyramid, which the model does not have"


def convert_vitdet(state_dict: Mapping[str, Tensor]) -> Conversion:
    """ViTDet with Detectron2's ViT to our ``ViT`` with the same pyramid and heads."""
    return replace(convert_names(state_dict, drop=_DROPPED), backbone_path=_BACKBONE)


def convert_eva02_det(state_dict: Mapping[str, Tensor]) -> Conversion:
    """ViTDet with EVA-02's ViT to ``TimmViT`` with the same pyramid and heads.

    Other than timm's models, the net has no class token.
    """
    conversion = convert_names(state_dict, drop=_DROPPED | _EVA02_DROPPED, rename=RENAMED_SEPARATE)
    return replace(conversion, backbone_path=_BACKBONE)


def _without_pyramid(convert: Converter) -> Converter:
    """For models that wrap the net in another way."""

    def convert_rest(state_dict: Mapping[str, Tensor]) -> Conversion:
        conversion = convert(state_dict)
        for name in [name for name in conversion.tensors if _PYRAMID.match(name)]:
            conversion.take(name, _OTHER_PYRAMID)
        return conversion

    return convert_rest


def _is_vitdet(state_dict: Mapping[str, Tensor]) -> bool:
    return "backbone.net.patch_embed.proj.weight" in state_dict and any(
        map(_PYRAMID.match, state_dict)
    )


def _is_eva02_det(state_dict: Mapping[str, Tensor]) -> bool:
    return _is_vitdet(state_dict) and any(map(_EVA02.match, state_dict))


VITDET = Family(
    "vitdet",
    "ViTDet detectors of Detectron2 and of this project",
    _is_vitdet,
    convert_vitdet,
    alternatives=(_without_pyramid(convert_vitdet),),
)
EVA02_DET = Family(
    "eva02_det",
    "ViTDet detectors of EVA-02",
    _is_eva02_det,
    convert_eva02_det,
    alternatives=(_without_pyramid(convert_eva02_det),),
)
