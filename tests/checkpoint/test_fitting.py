import math

import pytest
import torch
from detectron2.modeling.backbone.utils import get_abs_pos
from hypothesis import assume, given
from hypothesis import strategies as st
from timm.models import adapt_input_conv
from torch import Tensor

from vitadapter.checkpoint.fitting import (
    fit_tensor,
    prefix_rows,
    resize_patch_kernel,
    resize_pos_embed,
    resize_relative_position_bias_table,
)


@pytest.mark.parametrize("new_side", [7, 14, 20])
def test_positions_as_detectron2_resizes_them(new_side: int) -> None:
    pos_embed = torch.randn(1, 1 + 14 * 14, 8)
    resized = resize_pos_embed(pos_embed, 1, 1 + new_side**2, 1)
    expected = get_abs_pos(pos_embed, True, (new_side, new_side)).flatten(1, 2)
    torch.testing.assert_close(resized[:, 1:], expected)
    assert torch.equal(resized[:, :1], pos_embed[:, :1])


@pytest.mark.parametrize(("prefix", "new_prefix"), [(1, 0), (0, 1), (2, 1), (5, 0), (1, 2)])
@pytest.mark.parametrize("new_side", [14, 10])
def test_prefix_rows(prefix: int, new_prefix: int, new_side: int) -> None:
    pos_embed = torch.randn(1, prefix + 14 * 14, 4)
    resized = resize_pos_embed(pos_embed, prefix, new_prefix + new_side**2, new_prefix)
    assert resized.shape == (1, new_prefix + new_side**2, 4)
    kept = min(prefix, new_prefix)
    assert torch.equal(resized[:, :kept], pos_embed[:, :kept])
    assert not resized[:, kept:new_prefix].any()
    grid = resize_pos_embed(pos_embed[:, prefix:], 0, new_side**2, 0)
    assert torch.equal(resized[:, new_prefix:], grid)


@pytest.mark.parametrize(("prefix", "new_prefix"), [(0, 1), (2, 1), (1, 0), (220, 1), (1, 197)])
def test_rows_that_are_no_square(prefix: int, new_prefix: int) -> None:
    with pytest.raises(ValueError, match=r"positions are not a square grid after \d+ rows"):
        resize_pos_embed(torch.ones(1, 197, 4), prefix, 50, new_prefix)


def tokens(cls: int = 0, dist: int = 0, registers: int = 0) -> dict[str, Tensor]:
    rows = {"cls_token": cls, "dist_token": dist, "reg_token": registers}
    return {name: torch.ones(1, number, 8) for name, number in rows.items() if number}


@given(
    side=st.integers(6, 40),
    cls=st.integers(0, 1),
    registers=st.integers(0, 8),
    style=st.sampled_from(["no rows", "class token", "all"]),
)
def test_prefix_rows_are_those_of_the_tokens(
    side: int, cls: int, registers: int, style: str
) -> None:
    """timm's ``no_embed_class``; DINOv2, whose registers have none; timm's default."""
    prefix = {"no rows": 0, "class token": cls, "all": cls + registers}[style]
    assert prefix_rows(prefix + side**2, tokens(cls, 0, registers)) == prefix
    assert prefix_rows(2 + side**2, tokens(1, 1)) == 2  # distilled


@given(height=st.integers(2, 40), width=st.integers(2, 40), cls=st.integers(0, 1))
def test_rows_of_a_grid_that_is_not_square(height: int, width: int, cls: int) -> None:
    """They are never taken for a smaller grid after many rows (129 for 8 and 11 x 11)."""
    assume(math.isqrt(height * width) ** 2 != height * width)
    assume(cls == 0 or math.isqrt(height * width + 1) ** 2 != height * width + 1)
    assume(cls == 1 or math.isqrt(height * width - 1) ** 2 != height * width - 1)
    with pytest.raises(ValueError, match="not a square grid after 0 or 1 rows"):
        prefix_rows(height * width + cls, tokens(cls))


def test_patches_grow_bilinearly() -> None:
    """A ramp stays a ramp, with its steps scaled: half-pixel centres, no rescaled values."""
    ramp = torch.arange(14.0).expand(2, 3, 14, 14)
    resized = resize_patch_kernel(ramp, (16, 16))
    expected = ((torch.arange(16.0) + 0.5) * 14 / 16 - 0.5).clamp(0, 13)
    torch.testing.assert_close(resized, expected.expand(2, 3, 16, 16))
    assert torch.equal(resize_patch_kernel(ramp.half(), (16, 16)), resized)  # not rounded again


def fit(name: str, tensor: Tensor, shape: tuple[int, ...], **others: Tensor) -> object:
    return fit_tensor(name, {name: tensor}, {name: torch.empty(shape), **others})


def test_what_fits_is_passed_on() -> None:
    tensor = torch.ones(3)
    fitted, method = fit("blocks.0.norm1.weight", tensor, (3,))
    assert fitted is tensor
    assert method == ""


def test_methods_are_named() -> None:
    fitted, method = fit("pos_embed", torch.ones(1, 197, 4), (1, 50, 4))
    assert (tuple(fitted.shape), method) == ((1, 50, 4), "bicubic")
    kernel = torch.randn(4, 3, 14, 14)
    fitted, method = fit("patch_embed.proj.weight", kernel, (4, 3, 16, 16))
    assert method == "bilinear"
    assert torch.equal(fitted, resize_patch_kernel(kernel, (16, 16)))
    name = "blocks.0.attn.relative_position_bias_table"
    fitted, method = fit(name, torch.ones(732, 2), (729, 2))
    assert tuple(fitted.shape) == (729, 2)
    assert "spline" in method
    name = "visual_embed.patch_embed.spatial_pos_embed.weight"
    fitted, method = fit(name, torch.ones(196, 2), (100, 2))
    assert (tuple(fitted.shape), method) == ((100, 2), "bicubic")


def test_what_is_interpolated_is_not_rounded_to_half_precision() -> None:
    table = torch.randn(732, 2).half()
    fitted, _ = fit("blocks.0.attn.relative_position_bias_table", table, (3025, 2))
    expected = resize_relative_position_bias_table(table.double(), 3025)
    torch.testing.assert_close(fitted.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 4])
def test_input_channels_as_timm_adapts_them(channels: int) -> None:
    kernel = torch.randn(4, 3, 16, 16)
    fitted, _ = fit("patch_embed.proj.weight", kernel, (4, channels, 16, 16))
    assert torch.equal(fitted, adapt_input_conv(channels, kernel))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("blocks.0.norm1.weight", (4,), (8,)),
        ("blocks.0.attn.qkv.weight", (12, 4), (24, 8)),
        ("pos_embed", (1, 197, 4), (1, 197, 8)),
        ("pos_embed", (197, 4), (1, 197, 4)),
        ("pos_embed", (1, 220, 4), (1, 197, 4)),
        ("patch_embed.proj.weight", (4, 3, 14, 14), (8, 3, 16, 16)),
        ("patch_embed.proj.weight", (4, 5, 16, 16), (4, 3, 16, 16)),
        ("patch_embed.proj.weight", (4, 768), (4, 3, 16, 16)),
        ("patch_embed.proj.weight", (4, 3, 32, 32), (4, 3, 16, 16)),
        ("patch_embed.proj.weight", (4, 3, 8, 8), (4, 3, 16, 16)),
        ("patch_embed.proj.weight", (4, 3, 16, 8), (4, 3, 16, 16)),
        ("blocks.0.attn.relative_position_bias_table", (732, 2), (732, 4)),
        ("blocks.0.attn.relative_position_bias_table", (729, 2), (732, 2)),
        ("blocks.0.attn.relative_position_bias_table", (700, 2), (732, 2)),
    ],
)
def test_another_size_is_not_made_to_fit(
    name: str, old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"width|heads|channels|pixels|rows|^$"):
        fit(name, torch.ones(old), new)


def test_the_position_of_a_class_token_is_not_made_up() -> None:
    grid_only = torch.ones(1, 196, 4)
    with pytest.raises(ValueError, match="position of the class token is missing"):
        fit("pos_embed", grid_only, (1, 197, 4), cls_token=torch.ones(1, 1, 4))
    fitted, _ = fit("pos_embed", grid_only, (1, 197, 4))
    assert not fitted[:, 0].any()
