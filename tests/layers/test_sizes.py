"""Pooling whose sizes are symbolic, against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from vitadapter.layers.sizes import average_cells


@pytest.mark.parametrize("size", [(14, 21), (7, 5), (3, 3)])
def test_compiled_pooling_keeps_its_type_under_autocast(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    compiled = torch.compile(lambda x: average_cells(x, 3), backend="eager", dynamic=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = compiled(x)
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(x, 3))
