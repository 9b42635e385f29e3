"""Test-time augmentation of segmenters, as officially: several scales, each also mirrored.

An experiment brings it along, and `train.inference.tta.enabled=True` switches it on::

    train.inference.tta = get_config("common/sem_seg_tta.py").multi_scale_flip
"""

from detectron2.config import LazyCall as L

from vitadapter.data.transforms import resizes_at_ratios
from vitadapter.modeling.inference import SemanticSegmentorWithTTA


def _multi_scale_flip(**sides):
    # The ratios that the official files name.
    resizes = L(resizes_at_ratios)(
        ratios=[0.5, 0.75, 1.0, 1.25, 1.5, 1.75], short="${dataset.resize.short}", **sides
    )
    return dict(
        enabled=False,
        wrapper=L(SemanticSegmentorWithTTA)(
            model=None,  # the model that is evaluated
            resizes=resizes,
            flip=True,
        ),
        # What else of the config it sets, besides that test images come whole.
        overrides=[],
    )


# DeiT, AugReg and Uni-Perceiver.
multi_scale_flip = _multi_scale_flip(long="${dataset.resize.long}", least_short=1, divisor=32)
# BEiT: shorter sides of at least a crop, longer sides as they come.
multi_scale_flip_beit = _multi_scale_flip(
    long=None, least_short="${dataset.crop.size}", divisor=None
)
