"""Boxes and regions in plain tensors, of numbers that are known only when a program runs.

Detectron2's `Boxes`, `ROIPooler` and proposal functions branch on such numbers, which a traced
program cannot do. These functions give the same results.
"""

import math
from collections.abc import Sequence

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor

from vitadapter.layers.nms import NMS, HardNMS

__all__ = ["anchors_of", "clip", "exportable", "pool", "select", "suppress"]


# A score that float16 can hold and that no box has.
_LOWEST = -6e4


def anchors_of(generator: DefaultAnchorGenerator, maps: Sequence[Tensor]) -> list[Tensor]:
    """Returns the anchors (H * W * A, 4) of each of the maps (1, C, H, W)."""
    levels = []
    for cells, stride, feature in zip(generator.cell_anchors, generator.strides, maps, strict=True):
        y, x = (
            (torch.arange(side, device=cells.device) + generator.offset) * stride
            for side in feature.shape[-2:]
        )
        y, x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack((x, y, x, y), dim=-1).flatten(0, 1)  # (H * W, 4)
        levels.append((shifts[:, None] + cells).flatten(0, 1))
    return levels


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Clips boxes (..., 4) to an image with `size` (height, width), (2,)."""
    limits = size.flip(0).repeat(2).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limits)


def select(mask: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Selects the rows of tensors (N, ...) for which the mask (N,) is true."""
    rows = mask.nonzero()[:, 0]
    return [tensor[rows] for tensor in tensors]


def exportable(nms: NMS) -> HardNMS:
    """Returns a suppression that can be written as a program, raises ValueError for another."""
    if not isinstance(nms, HardNMS):
        raise ValueError(
            f"only HardNMS can be exported, since {type(nms).__name__} repeats itself as often as "
            "there are boxes: set nms=vitadapter.layers.nms.HardNMS"
        )
    return nms


def suppress(
    nms: HardNMS,
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    num_groups: int,
    size: Tensor,
    limit: int,
) -> tuple[Tensor, Tensor]:
    """Suppresses overlapping boxes, separately for each group.

    Args:
        nms: how they are suppressed.
        boxes: (N, 4), inside the image.
        scores: (N,).
        groups: (N,) integers in 0 .. `num_groups` - 1.
        num_groups: number of groups.
        size: (height, width) of the image, (2,).
        limit: maximum number of boxes; negative for all.

    Returns:
        (K,) indexes of the boxes that are kept, best first, and their (K,) scores.
    """
    # Every group is moved to a place of its own. A square of places keeps coordinates small, which
    # float32 needs to be exact.
    columns = math.isqrt(max(num_groups - 1, 0)) + 1
    places = torch.stack((groups % columns, groups // columns), dim=1).repeat(1, 2)
    apart = boxes + (places * (size.max() + 1)).to(boxes.dtype)
    # torchvision promises `torch.export` that at least two boxes are kept. Two that come last, and
    # overlap with none, make this true. Their score is finite, as OpenVINO drops boxes with -inf.
    fillers = apart.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]])
    ranks = torch.cat([scores.clamp(min=_LOWEST / 2), scores.new_full((2,), _LOWEST)])
    keep = torch.ops.torchvision.nms(torch.cat([apart, fillers]), ranks, nms.iou_threshold)
    keep = keep[: keep.shape[0] - 2]
    if limit >= 0:
        keep = keep[:limit]
    return keep, scores[keep]


def pool(pooler: ROIPooler, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Pools the regions of boxes (N, 4) of one image to (N, C, h, w); see `ROIPooler`."""
    rois = torch.cat([boxes.new_zeros(boxes.shape[0], 1), boxes], dim=1)
    if len(maps) == 1:
        return pooler.level_poolers[0](maps[0], rois)
    # As `assign_boxes_to_levels`, without `Boxes`, which asks whether there are any.
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    levels = pooler.canonical_level + torch.log2(area.sqrt() / pooler.canonical_box_size + 1e-8)
    levels = levels.floor().clamp(pooler.min_level, pooler.max_level) - pooler.min_level
    pooled = maps[0].new_zeros(boxes.shape[0], maps[0].shape[1], *pooler.output_size)
    for level, (feature, align) in enumerate(zip(maps, pooler.level_poolers, strict=True)):
        rows = (levels == level).nonzero()[:, 0]
        pooled = pooled.index_put((rows,), align(feature, rois[rows]))
    return pooled
