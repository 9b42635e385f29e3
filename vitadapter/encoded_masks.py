"""Masks of objects in a large image, which are kept small until they are asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict, cast, overload

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor

__all__ = [
    "RLE",
    "EncodedMasks",
    "MaskCrop",
    "Region",
    "encode_union",
    "index_in",
    "intersection",
]

Region = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in whole pixels; x1 and y1 are outside."""


Selected = slice | Sequence[int] | np.ndarray | Tensor
"""Some of several masks."""


class RLE(TypedDict):
    """A mask in COCO's compressed run-length encoding."""

    size: Sequence[int]
    counts: bytes


class EncodedMasks:
    """The `pred_masks` of `Instances` as run lengths.

    One mask is decoded at a time: by its number, or in a loop. Anything else that selects from a
    tensor selects encoded masks.

    Args:
        rles: N masks of the same size.
        size: their (height, width).

    Attributes:
        rles: as given.
        shape: (N, height, width), as of a tensor.
    """

    def __init__(self, rles: Sequence[RLE], size: tuple[int, int]) -> None:
        self.rles = list(rles)
        self.shape = (len(self.rles), *size)

    def __len__(self) -> int:
        return len(self.rles)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: Selected) -> "EncodedMasks": ...
    def __getitem__(self, index: int | Selected) -> "Tensor | EncodedMasks":
        """Mask (height, width) bool of a number, or some of the masks, selected as in a tensor."""
        numbers = torch.arange(len(self))[index]
        if numbers.dim() == 0:
            return torch.from_numpy(mask_util.decode([self.rles[int(numbers)]])[..., 0]).bool()
        return EncodedMasks([self.rles[number] for number in numbers.tolist()], self.shape[1:])

    def __iter__(self) -> Iterator[Tensor]:
        return (self[number] for number in range(len(self)))

    def to(self, *_: object, **__: object) -> "EncodedMasks":
        """These masks, which are on no device; `Instances.to` calls it."""
        return self

    def tensor(self) -> Tensor:
        """All masks (N, height, width) bool, of which each pixel is a byte."""
        masks = torch.zeros(self.shape, dtype=torch.bool)
        for mask, decoded in zip(masks, self, strict=True):
            mask.copy_(decoded)
        return masks


@dataclass(frozen=True)
class MaskCrop:
    """A mask, of which only the run lengths in its box are kept.

    Args:
        box: around the mask, in the image.
        rle: the pixels in the box.
    """

    box: Region
    rle: RLE

    @classmethod
    def of(cls, mask: np.ndarray, x: int, y: int) -> "MaskCrop":
        """Keeps what matters of a mask (h, w) bool whose first pixel is at (x, y) of the image."""
        columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
        if len(columns) == 0:
            return cls((x, y, x, y), RLE(size=[0, 0], counts=b""))
        x0, x1, y0, y1 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
        box = (x + int(x0), y + int(y0), x + int(x1), y + int(y1))
        return cls(box, mask_util.encode(np.asfortranarray(mask[y0:y1, x0:x1], np.uint8)))

    def pixels(self, region: Region) -> np.ndarray:
        """The mask (h, w) bool in a part of the image."""
        x0, y0, x1, y1 = region
        # pycocotools goes down the columns: in another order, copying would take much longer.
        found = np.zeros((y1 - y0, x1 - x0), bool, order="F")
        inside = intersection(self.box, region)
        if inside is not None:
            decoded = mask_util.decode(self.rle).view(bool)
            found[index_in(region, inside)] = decoded[index_in(self.box, inside)]
        return found


def index_in(whole: Region, region: Region) -> tuple[slice, slice]:
    """Where a region is in a map (h, w) of a larger one."""
    left, top = whole[:2]
    x0, y0, x1, y1 = region
    return slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def intersection(first: Region, second: Region) -> Region | None:
    """What two regions share; None for nothing."""
    x0, y0 = max(first[0], second[0]), max(first[1], second[1])
    x1, y1 = min(first[2], second[2]), min(first[3], second[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def encode_union(crops: Sequence[MaskCrop], size: tuple[int, int]) -> RLE:
    """Encodes the union of masks without making a map of the whole image.

    Args:
        crops: of the image.
        size: (height, width) of the image.
    """
    height, width = size
    boxes = np.array([crop.box for crop in crops])
    left, right = int(boxes[:, 0].min()), int(boxes[:, 2].max())
    # Run lengths go down the columns: only those with pixels are looked at. A zero is before
    # and behind them, so that every run begins and ends with a change.
    columns = np.zeros((right - left) * height + 2, bool)
    strip = columns[1:-1].reshape(right - left, height).T
    for crop in crops:
        strip[index_in((left, 0, right, height), crop.box)] |= crop.pixels(crop.box)
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + left * height
    counts = np.diff(np.concatenate([[0], changes, [height * width]]))
    counts = counts if counts[-1] else counts[:-1]
    return cast(
        RLE, mask_util.frPyObjects({"size": [height, width], "counts": counts.tolist()}, *size)
    )
