"""Where the cells of a map lie: the reference points of deformable attention."""

import torch
from torch import Tensor

__all__ = ["cell_centres"]


def cell_centres(
    hw: tuple[int, int], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Returns the centres of a map's cells.

    Args:
        hw: height h and width w of the map.
        device: device of the result.
        dtype: dtype of the result; half precision would be too coarse.

    Returns:
        (1, h * w, 1, 2), row by row, as (x, y) in [0, 1].
    """
    y, x = ((torch.arange(side, dtype=dtype, device=device) + 0.5) / side for side in hw)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((x, y), dim=-1).view(1, hw[0] * hw[1], 1, 2)
