"""Sizes that `torch.export` and `torch.compile` may keep symbolic, for images of any size.

A branch on a symbolic size would restrict the program to one side of the branch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

__all__ = ["average_cells", "check_fixed", "holds_for_all_sizes", "padding_to"]


def holds_for_all_sizes(condition: bool | torch.SymBool) -> bool:
    """Whether a comparison of sizes is true: in a traced program, for every size that it takes."""
    # `torch.compile` shows symbolic comparisons as bools. `torch.jit.trace`, and fvcore with it,
    # has tensors for sizes, which are not symbolic.
    symbolic = torch.compiler.is_dynamo_compiling() or isinstance(condition, torch.SymBool)
    return statically_known_true(condition) if symbolic else bool(condition)


def padding_to(size: int, multiple: int) -> int:
    """Returns how much is missing to the next multiple."""
    # Not "-size % multiple", whose symbolic form does not cancel out of the padded size.
    return (size + multiple - 1) // multiple * multiple - size


def check_fixed(what: str, *sizes: int) -> None:
    """Raises ValueError if a program is traced for several sizes, which `what` cannot have."""
    if any(isinstance(size, torch.SymInt) for size in sizes):
        raise ValueError(f"{what} cannot be exported for images of any size: give one (--size H W)")


def average_cells(x: Tensor, cells: int) -> Tensor:
    """`F.adaptive_avg_pool2d` of maps (B, C, h, w) to (B, C, cells, cells).

    For symbolic sizes, it is a product with weights, because ONNX has no adaptive pooling, and
    Inductor has it for fixed sizes only.
    """
    sides = x.shape[-2:]
    # `torch.compile` shows symbolic sizes as integers.
    symbolic = any(isinstance(side, torch.SymInt) for side in sides)
    if not symbolic and not torch.compiler.is_dynamo_compiling():
        return F.adaptive_avg_pool2d(x, cells)
    # As of the pooling, whose result autocast leaves in the type of the maps.
    with torch.autocast(x.device.type, enabled=False):
        rows, columns = (_cell_weights(side, cells, x) for side in sides)
        return rows @ x @ columns.t()


def _cell_weights(side: int, cells: int, like: Tensor) -> Tensor:
    """Returns what each cell takes (cells, side) of the places of a side."""
    places = torch.arange(side, device=like.device)
    bounds = torch.arange(cells + 1, device=like.device)[:, None] * side
    first = bounds[:-1] // cells
    stop = (bounds[1:] + cells - 1) // cells
    inside = ((places >= first) & (places < stop)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)
