"""The size of images that a data set suggests for training."""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["propose_crop", "propose_resize"]

# Three quarters of the objects shall be at least this large, in pixels of the model's input: the
# smallest anchor of the `finetune` experiments.
_VISIBLE, _SHARE = 16, 0.75
# Short edges: below, nets see fewer patches than any was trained with; above, cut images instead.
_LEAST, _LARGEST, _LARGEST_CROP = 128, 1024, 512
_UNIT = 32  # pixels; the coarsest stride of the features


def _rounded(side: float) -> int:
    return math.ceil(side / _UNIT - 1e-6) * _UNIT


def propose_resize(objects: Sequence[tuple[float, float, float]]) -> str:
    """Proposes a size at which most objects are large enough to be found.

    Args:
        objects: of each (height of its image, width of its image, its area), in pixels.

    Returns:
        The overrides of a `finetune` experiment, and why; "" if there is no object.
    """
    if not objects:
        return ""
    heights, widths, areas = np.asarray(objects, dtype=float).T
    short = np.minimum(heights, widths)
    relative = np.sqrt(areas) / short
    wanted = _VISIBLE / np.quantile(relative, 1 - _SHARE)
    # Larger images than there are show nothing more.
    side = _rounded(min(max(wanted, _LEAST), max(float(np.median(short)), _LEAST), _LARGEST))
    visible = float((relative * side >= _VISIBLE).mean())
    long = _rounded(side * max(float(np.median(np.maximum(heights, widths) / short)), 4 / 3))
    sides = sorted({max(_LEAST, _rounded(side * factor)) for factor in (0.85, 1.0, 1.15)})
    train = ",".join(map(str, sides))
    text = (
        f"image size: dataset.resize.short={side} dataset.resize.long={long} "
        f"'dataset.resize.train_short=[{train}]', at which {visible:.0%} of the objects are at "
        f"least {_VISIBLE} pixels large"
    )
    if visible < _SHARE:
        text += "; for the others, cut the images into smaller ones"
    return text


def propose_crop(sizes: Sequence[tuple[int, int]]) -> str:
    """Proposes the size of the images, and of square crops of them.

    Args:
        sizes: (height, width) of images, in pixels.

    Returns:
        The overrides of a `finetune` experiment, and why; "" if there is no image.
    """
    if not sizes:
        return ""
    short = float(np.median(np.min(sizes, axis=1)))
    side = min(_rounded(max(short, _LEAST)), _LARGEST_CROP)
    return (
        f"image size: dataset.resize.short={side} dataset.resize.long={4 * side} "
        f"dataset.crop.size={side} dataset.crop.stride={2 * side // 3}, since half of the images "
        f"have a short edge of {short:.0f} pixels or less"
    )
