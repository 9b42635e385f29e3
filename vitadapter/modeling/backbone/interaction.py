"""Injector, extractor and interaction block (paper section 3.4)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vitadapter.layers.fast import (
    ActCheckpoint,
    add_and_norm,
    check_act_checkpoint,
    is_plain,
    recomputed,
    run_linear,
    run_with_checkpoint,
)
from vitadapter.layers.fast.switch import is_compiled
from vitadapter.layers.token_maps import depthwise_conv, join_maps, split_maps
from vitadapter.ops import MSDeformAttn, cell_centres

__all__ = [
    "ConvFFN",
    "DepthwiseConv",
    "Extractor",
    "Injector",
    "InteractionBlock",
    "TokenGrids",
    "pyramid_of",
]


def pyramid_of(vit: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Returns (height, width) at strides 8, 16 and 32 for h x w ViT tokens, h and w even."""
    h, w = vit
    return (2 * h, 2 * w), (h, w), (h // 2, w // 2)


class TokenGrids(NamedTuple):
    """Where the tokens of one image size lie.

    Attributes:
        vit: (h, w) of the ViT tokens, stride 16.
        pyramid: (height, width) of the adapter's tokens at strides 8, 16 and 32, in the order in
            which they are concatenated.
        vit_points: cell centres (1, h * w, 1, 2) of the ViT tokens, as (x, y) in [0, 1].
        pyramid_points: cell centres (1, 21 * h * w / 4, 1, 2) of the adapter's tokens.
    """

    vit: tuple[int, int]
    pyramid: tuple[tuple[int, int], ...]
    vit_points: Tensor
    pyramid_points: Tensor

    @classmethod
    def of(cls, vit: tuple[int, int], device: torch.device) -> "TokenGrids":
        """Returns the grids that belong to h x w ViT tokens, h and w even."""
        pyramid = pyramid_of(vit)
        points = [cell_centres(hw, device) for hw in pyramid]
        return cls(vit, pyramid, points[1], torch.cat(points, dim=1))

    def to_maps(self, tokens: Tensor) -> list[Tensor]:
        """Views the adapter's tokens (B, N, C) as channels-last maps (B, C, h, w)."""
        return split_maps(tokens, self.pyramid)


class DepthwiseConv(nn.Module):
    """One 3x3 depthwise convolution shared by the three levels of the adapter's tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    @property
    def is_as_built(self) -> bool:
        """Whether the convolution is the one that this class makes, and no user's."""
        conv = self.dwconv
        shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        return (
            is_plain(conv, nn.Conv2d)
            and shape == ((3, 3), (1, 1), (1, 1), (1, 1))
            and conv.groups == conv.in_channels == conv.out_channels
            and conv.padding_mode == "zeros"
        )

    def forward(self, x: Tensor, grids: TokenGrids) -> Tensor:
        """Maps tokens (B, N, C) to tokens of the same shape."""
        if is_compiled() and self.is_as_built:
            return depthwise_conv(x, self.dwconv.weight, self.dwconv.bias, grids.pyramid)
        return join_maps([self.dwconv(level) for level in grids.to_maps(x)])


class ConvFFN(nn.Module):
    """Feed-forward network with a depthwise convolution between its two layers.

    Args:
        dim: channels C of the tokens.
        hidden_dim: channels between the layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = DepthwiseConv(hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, grids: TokenGrids) -> Tensor:
        """Maps tokens (B, N, C) to tokens of the same shape."""
        hidden = self.dwconv(run_linear(self.fc1, x), grids)
        return run_linear(self.fc2, recomputed(self.act, hidden))


class Injector(nn.Module):
    """Adds spatial priors to the ViT tokens by cross-attention with a learnt gate (equation 1).

    Args:
        embed_dim: channels C.
        attention: makes the sparse attention for a given number of levels.
        norm_layer: makes a norm for a given number of channels.
        gamma_init: initial value of the gate; 0 does not change the pre-trained ViT at first.
    """

    def __init__(
        self,
        embed_dim: int,
        attention: Callable[[int], nn.Module],
        norm_layer: Callable[[int], nn.Module],
        gamma_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.query_norm = norm_layer(embed_dim)
        self.feat_norm = norm_layer(embed_dim)
        self.attn = attention(3)
        self.gamma = nn.Parameter(torch.full((embed_dim,), float(gamma_init)))

    def forward(
        self, x: Tensor, c: Tensor, grids: TokenGrids, branch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Updates ViT tokens, which attend to the adapter's tokens.

        Args:
            x: ViT tokens (B, h * w, C).
            c: the adapter's tokens (B, N, C).
            grids: where the tokens lie.
            branch: what `Extractor` has left to be added to c.

        Returns:
            The ViT tokens, and c with its branch, to go on with (see `add_and_norm`).
        """
        x, query = add_and_norm(self.query_norm, x)
        c, feat = add_and_norm(self.feat_norm, c, branch)
        return x + self._attend(query, grids.vit_points, feat, grids.pyramid), c

    def _attend(self, *inputs: object) -> Tensor:
        """What passes the gate."""
        # Other attention, which a user may have written, takes no gate.
        is_ours = type(self.attn).forward is MSDeformAttn.forward
        if is_ours and "forward" not in vars(self.attn):
            return self.attn(*inputs, self.gamma)
        return self.gamma * self.attn(*inputs)


class Extractor(nn.Module):
    """Gathers multi-scale features from the ViT tokens by cross-attention (equations 2 and 3).

    Args:
        embed_dim, attention, norm_layer: see `Injector`.
        ffn_ratio: hidden width of the FFN, relative to `embed_dim`; 0 for no FFN.
        drop_path_rate: stochastic depth of the FFN.
    """

    def __init__(
        self,
        embed_dim: int,
        attention: Callable[[int], nn.Module],
        norm_layer: Callable[[int], nn.Module],
        ffn_ratio: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.query_norm = norm_layer(embed_dim)
        self.feat_norm = norm_layer(embed_dim)
        self.attn = attention(1)
        self.ffn = None
        if ffn_ratio > 0:
            self.ffn_norm = norm_layer(embed_dim)
            self.ffn = ConvFFN(embed_dim, int(embed_dim * ffn_ratio))
            self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(
        self, c: Tensor, x: Tensor, grids: TokenGrids, branch: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Updates the adapter's tokens, which attend to ViT tokens.

        Args:
            c: the adapter's tokens (B, N, C).
            x: ViT tokens (B, h * w, C).
            grids: where the tokens lie.
            branch: what the extractor before has left to be added to c.

        Returns:
            c, its last branch (B, N, C), which the next norm adds to it, and x as it was. All are
            to go on with (see `add_and_norm`).
        """
        c, query = add_and_norm(self.query_norm, c, branch)
        x, feat = add_and_norm(self.feat_norm, x)
        attended = self.attn(query, grids.pyramid_points, feat, (grids.vit,))
        if self.ffn is None:
            return c, attended, x
        c, normed = add_and_norm(self.ffn_norm, c, attended)
        return c, self.drop_path(self.ffn(normed, grids)), x


class InteractionBlock(nn.Module):
    """What surrounds the ViT blocks of one stage: an injector and an extractor (paper figure 4).

    Args:
        injector: adds spatial priors to the ViT tokens; None for no injector.
        extractor: gathers features from the ViT tokens.
        extra_extractors: further extractors on the same ViT tokens (last interaction only).
        use_act_checkpoint: whether to recompute the adapter's parts in the backward pass; "layers"
            for cheap layers only (see `run_with_checkpoint`).

    Raises:
        ValueError: unknown `use_act_checkpoint`.
    """

    def __init__(
        self,
        injector: Injector | None,
        extractor: Extractor,
        extra_extractors: list[Extractor],
        use_act_checkpoint: ActCheckpoint = False,
    ) -> None:
        super().__init__()
        check_act_checkpoint(use_act_checkpoint)
        self.injector = injector
        self.extractor = extractor
        self.extra_extractors = nn.ModuleList(extra_extractors) if extra_extractors else None
        self.use_act_checkpoint = use_act_checkpoint

    def inject(
        self, x: Tensor, c: Tensor, branch: Tensor | None, grids: TokenGrids
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Adds the priors to ViT tokens.

        Args:
            x: ViT tokens (B, h, w, C).
            c: the adapter's tokens (B, N, C).
            branch: what is left to be added to c (B, N, C); None for nothing.
            grids: where the tokens lie.

        Returns:
            x, c and branch, to go on with.
        """
        if self.injector is None:
            return x, c, branch
        c, branch = self._added(c, branch)
        level = self.use_act_checkpoint
        tokens, c = run_with_checkpoint(level, self.injector, x.flatten(1, 2), c, grids, branch)
        return tokens.view(x.shape), c, None

    def extract(
        self, c: Tensor, branch: Tensor | None, x: Tensor, grids: TokenGrids
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Adds features of ViT tokens to the adapter's tokens.

        Args:
            c, branch, x, grids: see `inject`.

        Returns:
            c, branch and x, to go on with.
        """
        tokens = x.flatten(1, 2)
        for extractor in (self.extractor, *(self.extra_extractors or ())):
            c, branch = self._added(c, branch)
            c, branch, tokens = run_with_checkpoint(
                self.use_act_checkpoint, extractor, c, tokens, grids, branch
            )
        return c, branch, tokens.view(x.shape)

    def _added(self, c: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Adds the branch where the sum is kept, which takes less memory than both."""
        if branch is None or self.use_act_checkpoint is not True:
            return c, branch
        return c + branch, None
