"""Test-time augmentation of segmenters: the official `_ms` recipes.

An experiment takes one with::

    train.inference.tta = get_config("common/sem_seg_tta.py").multi_scale_flip
    dataloader.test.mapper.augmentations = []  # the scales are made from the whole image
"""

from detectron2.config import LazyCall as L

from vitadapter.data.transforms import ResizeToFit, StretchToMultiple
from vitadapter.modeling.inference import SemanticSegmentorWithTTA

_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def _segmentor_with_tta(resizes):
    return L(SemanticSegmentorWithTTA)(model="${..model}", resizes=resizes, flip=True)


def _stretched(sides):
    """Fits (short, long) sides, then stretches to a multiple of 32 pixels."""
    return [
        [L(ResizeToFit)(short=short, long=long), L(StretchToMultiple)(divisor=32)]
        for short, long in sides
    ]


def _with_floor(short, crop, ratios):
    """Shorter sides of at least a crop, the longer sides as they come."""
    return [L(ResizeToFit)(short=max(int(short * ratio), crop)) for ratio in ratios]


# DeiT, AugReg and Uni-Perceiver at 512 pixels: the ratios that the official files name.
multi_scale_flip = _segmentor_with_tta(
    _stretched([(int(512 * ratio), int(2048 * ratio)) for ratio in _RATIOS])
)
# BEiT, by crop; of Pascal Context (480) the images have 520 pixels, of Cityscapes 1024.
multi_scale_flip_480 = _segmentor_with_tta(_with_floor(520, 480, _RATIOS))
multi_scale_flip_512 = _segmentor_with_tta(_with_floor(512, 512, _RATIOS))
multi_scale_flip_640 = _segmentor_with_tta(_with_floor(640, 640, _RATIOS))
multi_scale_flip_cityscapes = _segmentor_with_tta(_with_floor(1024, 896, (*_RATIOS, 2.0)))
# Smaller than the crop: `model.inference.pad_to_crop` pads them.
multi_scale_flip_896 = _segmentor_with_tta(
    _stretched([(short, 4 * short) for short in (640, 768, 896)])
)
multi_scale_flip_896_beitv2 = _segmentor_with_tta(
    _stretched([(short, 4 * short) for short in (800, 832, 864, 896)])
)
flip_896 = _segmentor_with_tta(_stretched([(896, 3584)]))
