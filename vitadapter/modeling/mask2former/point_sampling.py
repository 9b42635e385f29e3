"""Losses on points instead of whole masks (PointRend, arXiv 1912.08193)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["RandomPoints", "sample_at_points", "uncertain_points", "uniform_points"]

RandomPoints = Callable[[int, int, torch.device], Tensor]
"""(number of masks N, points per mask P, device) to points (N, P, 2) as (x, y) in [0, 1]."""


def uniform_points(num_masks: int, num_points: int, device: torch.device) -> Tensor:
    """Independent uniform points (N, P, 2)."""
    return torch.rand(num_masks, num_points, 2, device=device)


def sample_at_points(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of masks at points; 0 outside.

    Args:
        masks: (N, h, w).
        points: (N or 1, P, 2) as (x, y) in [0, 1].

    Returns:
        (N, P).
    """
    grid = (2 * points - 1).to(masks.dtype)
    if len(points) == 1:
        # One set of points for all masks: these are channels, so that nothing is repeated.
        return F.grid_sample(masks[None], grid[:, :, None], align_corners=False)[0, :, :, 0]
    return F.grid_sample(masks[:, None], grid[:, :, None], align_corners=False)[:, 0, :, 0]


def uncertain_points(
    mask_logits: Tensor,
    *,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    random_points: RandomPoints,
) -> Tensor:
    """Points of which a part lies where predictions are the least certain.

    Args:
        mask_logits: (N, h, w).
        num_points: P, points per mask.
        oversample_ratio: candidates, over P, that the uncertain points are chosen from.
        importance_sample_ratio: uncertain points, over P; the others are uniform.
        random_points: draws candidates and uniform points.

    Returns:
        (N, P, 2) as (x, y) in [0, 1].
    """
    device = mask_logits.device
    num_masks = len(mask_logits)
    candidates = random_points(num_masks, int(num_points * oversample_ratio), device)
    uncertainty = -sample_at_points(mask_logits, candidates).abs()
    num_uncertain = int(num_points * importance_sample_ratio)
    chosen = uncertainty.topk(num_uncertain, dim=1, sorted=False).indices  # (N, P')
    uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    uniform = random_points(num_masks, num_points - num_uncertain, device)
    return torch.cat((uncertain, uniform), dim=1)
