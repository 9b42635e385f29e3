"""Attention mechanisms to compare with deformable attention (paper section 4.4, table 7).

The paper names them and gives the costs of the whole detector, but not how they attend from the
tokens of one grid to those of several. The readings here meet its 50.3 M parameters, and its FLOPs
within 0.5 %: queries, keys, values and outputs each have a projection with a bias, and heads are as
many as those of the deformable attention. See `CSwinAttention` and `PaleAttention` for the rest.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitadapter.layers.fast import run_linear

from .interaction import pyramid_of

__all__ = ["CSwinAttention", "GlobalAttention", "PaleAttention"]


class GlobalAttention(nn.Module):
    """Multi-head attention of every query to all tokens of all levels (arXiv 1706.03762).

    Its time is quadratic in the number of pixels. Its memory is linear where PyTorch has a fused
    kernel of `scaled_dot_product_attention`, as on CPUs and current GPUs.

    Args:
        embed_dim: channels C of queries, input features and output.
        num_heads: attention heads.
        num_levels: feature maps that are attended to.
        num_points: not used, since every token is attended to.
        ratio: width of the projected queries, keys and values relative to `embed_dim`.

    Raises:
        ValueError: a size is not positive, or `num_heads` does not divide the projected width.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, num_levels: int, num_points: int, ratio: float = 1.0
    ) -> None:
        super().__init__()
        width = int(embed_dim * ratio)
        if min(embed_dim, num_heads, num_levels, width) < 1 or width % num_heads:
            raise ValueError(
                "embed_dim, num_heads and num_levels must be at least 1, and num_heads must divide "
                f"int(embed_dim * ratio), got {embed_dim=}, {num_heads=}, {num_levels=}, {ratio=}"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.query_proj = nn.Linear(embed_dim, width)
        self.key_proj = nn.Linear(embed_dim, width)
        self.value_proj = nn.Linear(embed_dim, width)
        self.output_proj = nn.Linear(width, embed_dim)
        for projection in (self.query_proj, self.key_proj, self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attends as `MSDeformAttn` does.

        Args:
            query: `(B, Q, C)`.
            reference_points: not used.
            value: input features of all levels as tokens, `(B, S, C)`.
            spatial_shapes: (height, width) of each level.

        Returns:
            `(B, Q, C)`.

        Raises:
            ValueError: wrong shape, or batches of different size.
        """
        for name, tensor in (("query", query), ("value", value)):
            if tensor.dim() != 3 or tensor.shape[-1] != self.embed_dim:
                raise ValueError(
                    f"{name} must have shape (batch, tokens, embed_dim={self.embed_dim}), "
                    f"got {tuple(tensor.shape)}"
                )
        if query.shape[0] != value.shape[0]:
            raise ValueError(
                "query and value must have the same batch size, got "
                f"{tuple(query.shape)} and {tuple(value.shape)}"
            )
        shapes = tuple((h, w) for h, w in spatial_shapes)
        tokens = sum(h * w for h, w in shapes)
        if len(shapes) != self.num_levels or tokens != value.shape[1]:
            raise ValueError(
                f"spatial_shapes must have num_levels={self.num_levels} entries with the "
                f"{value.shape[1]} tokens of value, got {list(shapes)}"
            )
        attended = self._attend(
            run_linear(self.query_proj, query),
            run_linear(self.key_proj, value),
            run_linear(self.value_proj, value),
            shapes,
        )
        return run_linear(self.output_proj, attended)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, shapes: tuple[tuple[int, int], ...]
    ) -> Tensor:
        """Attends with projected queries (B, Q, D), keys and values (B, S, D) to (B, Q, D)."""
        return _attention(query, key, value, self.num_heads)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None = None
) -> Tensor:
    """Multi-head attention of (B, Q, D) to (B, S, D), which gives (B, Q, D).

    `mask` (B, 1, 1, S) is True for the keys that exist.
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class _CrossedWindows(GlobalAttention):
    """Half of the heads attend within windows of rows, the other half within windows of columns.

    All maps, of queries and of keys, are cut into the same number of units: the rows of the map of
    stride 32, or parts of them. A window joins some units of every map. A map with fewer rows than
    units repeats its rows, and the results of a repeated query are averaged. Columns are the rows
    of the transposed maps.

    Args:
        embed_dim, num_heads, num_levels, num_points, ratio: see `GlobalAttention`.
        window_units: units in a window. If they do not divide the units of a map, some windows have
            fewer.

    Raises:
        ValueError: see `GlobalAttention`; or `num_heads` is odd, or `window_units` not an integer
            of at least 1.
    """

    units_per_row: int  # units in a row of stride 32

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ratio: float,
        window_units: int,
    ) -> None:
        super().__init__(embed_dim, num_heads, num_levels, num_points, ratio)
        if num_heads % 2 or not isinstance(window_units, int) or window_units < 1:
            raise ValueError(
                f"{type(self).__name__} needs an even number of heads, half of them for rows and "
                "half for columns (model.backbone.bottom_up.deform_num_heads), and windows of a "
                f"whole number of rows, at least one, got {num_heads} heads and {window_units!r} "
                "rows"
            )
        self.window_units = window_units

    def _join(self, units: Tensor) -> Tensor:
        """Makes windows (B, windows, window_units, ...) of units (B, units, ...)."""
        raise NotImplementedError

    def _separate(self, windows: Tensor) -> Tensor:
        """The inverse of `_join`."""
        raise NotImplementedError

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, shapes: tuple[tuple[int, int], ...]
    ) -> Tensor:
        queries = _maps(query, _shapes_of_queries(query.shape[1], shapes))
        attended = self._attend_maps(queries, _maps(key, shapes), _maps(value, shapes))
        return torch.cat([each.flatten(1, 2) for each in attended], dim=1)

    def _attend_maps(
        self, queries: list[Tensor], keys: list[Tensor], values: list[Tensor]
    ) -> list[Tensor]:
        """Attends with maps (B, h, w, D) to maps of the queries' sizes."""
        halves = [[x.chunk(2, dim=-1) for x in maps] for maps in (queries, keys, values)]
        by_rows = self._attend_rows(*([first for first, _ in maps] for maps in halves))
        by_columns = self._attend_rows(
            *([second.transpose(1, 2) for _, second in maps] for maps in halves)
        )
        return [
            torch.cat((rows, columns.transpose(1, 2)), dim=-1)
            for rows, columns in zip(by_rows, by_columns, strict=True)
        ]

    def _attend_rows(
        self, queries: list[Tensor], keys: list[Tensor], values: list[Tensor]
    ) -> list[Tensor]:
        # The map of stride 32 is on one of the two sides.
        units = self.units_per_row * min(x.shape[1] for x in (*queries, *keys))
        mask = None
        if units % self.window_units:
            exists = [x.new_ones((1, *x.shape[1:3], 1), dtype=torch.bool) for x in keys]
            mask = self._windows(exists, units).repeat(queries[0].shape[0], 1, 1).mT[:, None]
        q, k, v = (self._windows(maps, units) for maps in (queries, keys, values))
        attended = _attention(q, k, v, self.num_heads // 2, mask)
        return self._maps_of(attended, units, queries)

    def _windows(self, maps: list[Tensor], units: int) -> Tensor:
        """Cuts maps (B, h, w, D) into (B * windows, tokens, D)."""
        windows = []
        for x in maps:
            if x.shape[1] < units:
                x = x.repeat_interleave(units // x.shape[1], dim=1)
            x = x.unflatten(1, (units, -1))  # (B, units, rows, w, D)
            if missing := -units % self.window_units:
                x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing))
            windows.append(self._join(x).flatten(0, 1).flatten(1, 3))
        return torch.cat(windows, dim=1)

    def _maps_of(self, windows: Tensor, units: int, like: list[Tensor]) -> list[Tensor]:
        """Puts windows (B * windows, tokens, D) together to maps of the sizes of `like`."""
        count = -(-units // self.window_units)
        sizes = [(self.window_units, max(1, x.shape[1] // units), x.shape[2]) for x in like]
        parts = windows.split([math.prod(size) for size in sizes], dim=1)
        maps = []
        for part, size, x in zip(parts, sizes, like, strict=True):
            part = part.unflatten(1, size).unflatten(0, (-1, count))
            part = self._separate(part)[:, :units].flatten(1, 2)  # (B, h or units, w, D)
            repeated = x.shape[1] < units
            maps.append(part.unflatten(1, (x.shape[1], -1)).mean(2) if repeated else part)
        return maps


def _maps(tokens: Tensor, shapes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    """Views tokens (B, N, D) as a map (B, h, w, D) for each shape."""
    levels = tokens.split([h * w for h, w in shapes], dim=1)
    return [level.unflatten(1, hw) for level, hw in zip(levels, shapes, strict=True)]


def _shapes_of_queries(
    tokens: int, shapes: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    """The maps of so many queries: those that the adapter has where keys do not have `shapes`."""
    vit = shapes[0] if len(shapes) == 1 else shapes[1]
    sides = ((vit,), pyramid_of(vit))
    queries = sides[len(shapes) == 1]
    if shapes not in sides or vit[0] % 2 or vit[1] % 2 or sum(h * w for h, w in queries) != tokens:
        raise ValueError(
            "stripes and pales need queries of stride 16 with maps of strides 8, 16 and 32, or the "
            "reverse, with an even number of rows and columns at stride 16; "
            f"got {tokens} queries and maps of {list(shapes)}"
        )
    return queries


class CSwinAttention(_CrossedWindows):
    """Attention within cross-shaped stripes (arXiv 2107.00652), between maps of several strides.

    Half of the heads attend within horizontal stripes, and half within vertical ones. A stripe has
    the same place in the image in all maps: its width is `stripe_width` cells at stride 32, twice
    as many at stride 16, and four times as many at stride 8. A query attends to all tokens of its
    stripe. At the default width of 32 pixels, ViT-Adapter-S Mask R-CNN needs 457 GFLOPs at
    800 x 1280 (paper: 456), and stripes divide every image.

    The locally enhanced positional encoding (LePE) is a depthwise 3x3 convolution of the values,
    which is added to the output. It needs values where the queries are, so that queries of stride
    16 get it, in injectors as well as in extractors. It sees the whole map, not only the stripe.

    Args:
        embed_dim, num_heads, num_levels, num_points, ratio: see `GlobalAttention`; `num_heads` must
            be even.
        stripe_width: width of the stripes, in cells of the map of stride 32.

    Raises:
        ValueError: a size is not positive, or `num_heads` is odd or does not divide the projected
            width.
    """

    units_per_row = 1

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ratio: float = 1.0,
        stripe_width: int = 1,
    ) -> None:
        super().__init__(embed_dim, num_heads, num_levels, num_points, ratio, stripe_width)
        width = self.value_proj.out_features
        self.lepe = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def _join(self, units: Tensor) -> Tensor:
        return units.unflatten(1, (-1, self.window_units))

    def _separate(self, windows: Tensor) -> Tensor:
        return windows.flatten(1, 2)

    def _attend_maps(
        self, queries: list[Tensor], keys: list[Tensor], values: list[Tensor]
    ) -> list[Tensor]:
        attended = super()._attend_maps(queries, keys, values)
        for i, x in enumerate(attended):
            for value in values:
                if value.shape == x.shape:
                    attended[i] = x + self.lepe(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return attended


class PaleAttention(_CrossedWindows):
    """Attention within pales of spread rows and columns (arXiv 2112.14000), between several maps.

    It is the paper's parallel form: half of the heads attend to rows, and half to columns. A pale
    has `pale_size` rows of stride 16, at equal distances over the whole image: of n pales, pale i
    has the rows i, i + n, i + 2n and so on. Rows of stride 8 belong to the pale of the row of
    stride 16 that they lie in. A row of stride 32 covers two rows of stride 16: its tokens are keys
    in the pales of both (twice if that is the same pale), and attend as queries in both, with the
    mean as the result. So every query sees its own place. With pales of two rows, ViT-Adapter-S
    Mask R-CNN needs 458 GFLOPs at 800 x 1280, as in the paper, and pales divide every image.

    Pale Transformer has separable convolutions instead of linear projections, and a positional
    encoding before each block, which is not part of the attention.

    Args:
        embed_dim, num_heads, num_levels, num_points, ratio: see `GlobalAttention`; `num_heads` must
            be even.
        pale_size: rows (and columns) of a pale, in cells of the map of stride 16.

    Raises:
        ValueError: a size is not positive, or `num_heads` is odd or does not divide the projected
            width.
    """

    units_per_row = 2

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ratio: float = 1.0,
        pale_size: int = 2,
    ) -> None:
        super().__init__(embed_dim, num_heads, num_levels, num_points, ratio, pale_size)

    def _join(self, units: Tensor) -> Tensor:
        return units.unflatten(1, (self.window_units, -1)).transpose(1, 2)

    def _separate(self, windows: Tensor) -> Tensor:
        return windows.transpose(1, 2).flatten(1, 2)
