import pytest
import torch
from detectron2.modeling.backbone.utils import window_partition, window_unpartition

from vitadapter.layers import windows as module
from vitadapter.layers.windows import join_windows, split_windows

GRIDS = [(5, 7), (4, 8), (8, 4), (3, 3), (4, 4), (1, 9)]


@pytest.mark.parametrize("hw", GRIDS)
def test_windows_are_those_of_detectron2(hw: tuple[int, int]) -> None:
    grid = torch.randn(2, *hw, 3)
    expected, padded = window_partition(grid, 4)
    windows = split_windows(grid, 4)
    assert torch.equal(windows.flatten(0, 1), expected)
    assert torch.equal(join_windows(windows, hw), window_unpartition(expected, 4, padded, hw))


@pytest.mark.parametrize("hw", GRIDS)
def test_operators_of_compiled_programs_do_the_same(hw: tuple[int, int]) -> None:
    grid = torch.randn(2, *hw, 3, requires_grad=True)
    windows = split_windows(grid, 4).detach().requires_grad_(True)
    # Shapes, strides, aliases and gradients, as PyTorch asks for them.
    torch.library.opcheck(module._split_op, (grid, 4))
    torch.library.opcheck(module._join_op, (windows, *hw))
    for operator, plain, arguments in (
        (module._split_op, split_windows, (grid, 4)),
        (module._join_op, lambda x, h, w: join_windows(x, (h, w)), (windows, *hw)),
    ):
        found, expected = operator(*arguments), plain(*arguments)
        assert torch.equal(found, expected)
        into = torch.randn(found.shape)
        (grad,) = torch.autograd.grad(found, arguments[0], into)
        assert torch.equal(grad, torch.autograd.grad(expected, arguments[0], into)[0])
