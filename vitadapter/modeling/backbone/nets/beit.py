"""BEiT (arXiv 2106.08254) and BEiTv2 (arXiv 2208.06366) as nets."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from detectron2.modeling.backbone.utils import PatchEmbed
from torch import Tensor, nn

from vitadapter.layers.fast import ActCheckpoint, run_linear

from .plain_net import (
    Block,
    PlainNet,
    attend_in_windows,
    block_window_sizes,
    check_heads,
    check_net_arguments,
    project_padded,
)
from .relative_position import relative_position_bias, resize_relative_positions
from .tuning import Tuning, tune

__all__ = ["BEiT"]


class RelativeAttention(nn.Module):
    """Self-attention with a relative position bias; queries and values have a bias, keys have none.

    Args:
        dim: channels C of the tokens.
        num_heads: attention heads; divides `dim`.
        grid: (h, w) in tokens for whose offsets the table has entries; that of a window, if any.
        window_size: side of the attention windows in tokens; 0 for global attention.
        has_cls_token: whether the first token is a class token, for which the table has three more
            rows: class token to token, token to class token, class token to itself.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        window_size: int,
        has_cls_token: bool,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.has_cls_token = has_cls_token
        self.offsets = (2 * grid[0] - 1, 2 * grid[1] - 1)
        rows = math.prod(self.offsets) + (3 if has_cls_token else 0)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        hw: tuple[int, int],
        prompts: Tensor | None = None,
        gamma: Tensor | None = None,
    ) -> Tensor:
        """Attends over tokens (B, N, C) of an h x w grid and prompts (P, C), with layer scale (C,).

        Returns:
            The shape of the tokens.
        """
        # With a class token, the sequence is its own grid; there are no windows then.
        grid = (1, x.shape[1]) if self.has_cls_token else hw
        qkv = project_padded(x, self.qkv, grid, self.window_size)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        window_hw = (self.window_size, self.window_size) if self.window_size > 0 else hw
        logit_bias = self.relative_position_bias(window_hw)
        bias = bias.to(qkv.dtype)
        x = attend_in_windows(
            qkv + bias,
            self.num_heads,
            grid,
            self.window_size,
            lambda *_: logit_bias,
            None if prompts is None else self.qkv(prompts) + bias,
        )
        return run_linear(self.proj, x.flatten(1, 2), gamma)

    @property
    def is_of_any_size(self) -> bool:
        """Whether the bias has the size of the windows, whatever the size of the grid."""
        return self.offsets == (2 * self.window_size - 1,) * 2

    def relative_position_bias(self, hw: tuple[int, int]) -> Tensor:
        """Returns the logit bias (heads, N, N), with N = h * w plus 1 for a class token."""
        table = self.relative_position_bias_table.transpose(0, 1)
        offsets = table[:, : math.prod(self.offsets)].unflatten(1, self.offsets)
        size = (2 * hw[0] - 1, 2 * hw[1] - 1)
        bias = relative_position_bias(resize_relative_positions(offsets, size))
        if not self.has_cls_token:
            return bias
        num_tokens = bias.shape[-1]
        from_cls, to_cls, cls_to_cls = table[:, -3:].view(-1, 3, 1, 1).unbind(1)
        bias = torch.cat([to_cls.expand(-1, num_tokens, 1), bias], dim=2)
        first = torch.cat([cls_to_cls, from_cls.expand(-1, 1, num_tokens)], dim=2)
        return torch.cat([first, bias], dim=1)


class BEiTBlock(Block):
    """A `Block` in which layer scale has the names of BEiT."""

    gamma_names = ("gamma_1", "gamma_2")


class BEiT(PlainNet):
    """BEiT or BEiTv2 as a *net*, with a relative position bias in each block.

    It has no absolute positions. The official detectors have windows in all blocks, mostly small
    and some large ones (`window_size=14, global_window_size=56`), and no class token. The official
    segmenters have global attention and the class token (`use_cls_token=True`). They need images of
    exactly `img_size`; this net takes any size, because the bias for another grid is made from the
    same table (`resize_relative_positions`).

    Args:
        img_size: image side or (height, width) in pixels for which global blocks have offsets.
        use_cls_token: whether there is a class token, which needs global attention.
        window_size: side in tokens of the windows of `window_block_indexes`, one number for all or
            one for each.
        window_block_indexes: the blocks with small windows.
        global_window_size: side in tokens of the windows of all other blocks; 0 for global
            attention. A smaller image is padded to one window.
        layer_scale_init: initial value of layer scale, which pre-trained weights replace; None for
            no layer scale.
        others: see `ViT`.

    Raises:
        ValueError: an index is outside the net, a window size is missing, there are windows and a
            class token, the heads do not divide the channels, or a size is not positive.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = partial(nn.LayerNorm, eps=1e-6),
        use_cls_token: bool = False,
        window_size: int | Sequence[int] = 0,
        window_block_indexes: Sequence[int] = (),
        global_window_size: int = 0,
        layer_scale_init: float | None = 1e-6,
        use_act_checkpoint: ActCheckpoint = False,
        out_feature: str = "last_feat",
        *,
        offload_to_cpu: bool = False,
        tuning: Sequence[Tuning] = (),
    ) -> None:
        sizes = dict(patch_size=patch_size, in_chans=in_chans, depth=depth, mlp_ratio=mlp_ratio)
        check_net_arguments(sizes, drop_path_rate)
        check_heads(embed_dim, num_heads)
        super().__init__()
        self._set_attributes(
            embed_dim,
            depth,
            patch_size,
            use_act_checkpoint,
            out_feature,
            offload_to_cpu,
            final_norm=partial(norm_layer, embed_dim),
        )
        windows = block_window_sizes(depth, window_size, window_block_indexes, global_window_size)
        if use_cls_token and any(windows):
            raise ValueError(
                "use_cls_token needs global attention in every block, "
                f"got {window_size=} for blocks {list(window_block_indexes)}, {global_window_size=}"
            )
        grid = _grid(img_size, patch_size)
        patch = (patch_size, patch_size)
        self.patch_embed = PatchEmbed(patch, patch, in_chans=in_chans, embed_dim=embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if use_cls_token else None
        self.blocks = nn.ModuleList(
            BEiTBlock(
                RelativeAttention(
                    embed_dim, num_heads, (size, size) if size else grid, size, use_cls_token
                ),
                embed_dim,
                mlp_ratio,
                drop_path_rate * i / max(depth - 1, 1),
                norm_layer,
                nn.GELU,
                layer_scale_init,
            )
            for i, size in enumerate(windows)
        )
        self._init_weights()
        tune(self, tuning)

    def blocks_for_any_size(self) -> list[nn.Module]:
        """See `PlainNet`; a bias that is made for the size of the grid is no part of a program."""
        return [b for b in self.blocks if cast(RelativeAttention, b.attn).is_of_any_size]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `PlainNet.embed`."""
        # The convolution has its channels first. One copy here saves one in every norm.
        x = self.patch_embed(images).contiguous()
        if self.cls_token is None:
            return x, x.new_zeros(x.shape[0], 0, self.embed_dim)
        return x, self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1)

    def _init_weights(self) -> None:
        """Initialises as BEiT does: deeper residual branches have smaller weights."""
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        for depth, block in enumerate(self.blocks, start=1):
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            with torch.no_grad():
                for name in ("attn.proj.weight", "mlp.fc2.weight"):
                    block.get_parameter(name).div_(math.sqrt(2.0 * depth))


def _grid(img_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    """Returns (h, w) of an image in tokens."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height < patch_size or width < patch_size or height % patch_size or width % patch_size:
        raise ValueError(f"img_size must be a multiple of {patch_size=}, got {img_size}")
    return height // patch_size, width // patch_size
