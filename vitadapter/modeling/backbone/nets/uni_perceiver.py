"""The image encoder of Uni-Perceiver (arXiv 2112.01522), as a net."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.modeling.backbone.utils import PatchEmbed
from timm.layers import DropPath
from torch import Tensor, nn

from vitadapter.layers.fast import ActCheckpoint, add_and_norm, recomputed, run_linear

from .plain_net import (
    PlainNet,
    attend_in_windows,
    block_window_sizes,
    check_heads,
    check_net_arguments,
    project_padded,
)
from .positions import absolute_positions
from .tuning import Tuning, tune

__all__ = ["UniPerceiver"]

# The encoder was trained on videos with this many frames; an image is the first frame.
_NUM_FRAMES = 8


class VideoPatchEmbed(PatchEmbed):
    """Patch embedding of one frame with learnt positions in space and time.

    Args:
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        embed_dim: channels C of the tokens.
        num_patches: number of spatial positions, which form a square grid.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, num_patches: int) -> None:
        patch = (patch_size, patch_size)
        super().__init__(patch, patch, in_chans=in_chans, embed_dim=embed_dim)
        self.spatial_pos_embed = nn.Embedding(num_patches, embed_dim)
        self.temporal_pos_embed = nn.Embedding(_NUM_FRAMES, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, 3, H, W) to tokens (B, h, w, C)."""
        x = super().forward(x)
        hw = (x.shape[1], x.shape[2])
        spatial = absolute_positions(self.spatial_pos_embed.weight.unsqueeze(0), False, hw)
        return x + spatial + self.temporal_pos_embed.weight[0]


class SelfAttention(nn.Module):
    """Self-attention with a joint projection, global or inside windows, with the official names.

    Args:
        dim: channels C of the tokens.
        num_heads: attention heads; divides `dim`.
        window_size: side of the attention windows in tokens; 0 for global attention.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, hw: tuple[int, int], prompts: Tensor | None, gamma: Tensor
    ) -> Tensor:
        """Attends over tokens (B, h * w, C) and prompts (P, C), with layer scale gamma (C,).

        Returns:
            The shape of the tokens.
        """
        qkv = project_padded(x, self.in_proj, hw, self.window_size)
        prompt_qkv = None if prompts is None else self.in_proj(prompts)
        x = attend_in_windows(qkv, self.num_heads, hw, self.window_size, None, prompt_qkv)
        return run_linear(self.out_proj, x.flatten(1, 2), gamma)


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer with layer scale, with the official names.

    Args:
        dim, num_heads, window_size: see `SelfAttention`.
        mlp_ratio: hidden width of the MLP, relative to `dim`.
        drop_path: stochastic depth of both branches.
        norm_layer: makes a norm for a given number of channels.
        layer_scale_init: initial value of layer scale.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        window_size: int,
        drop_path: float,
        norm_layer: Callable[[int], nn.Module],
        layer_scale_init: float,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.self_attn = SelfAttention(dim, num_heads, window_size)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.linear1 = nn.Linear(dim, int(dim * mlp_ratio))
        self.act = nn.GELU()
        self.linear2 = nn.Linear(int(dim * mlp_ratio), dim)
        self.gamma_1 = nn.Parameter(torch.full((dim,), float(layer_scale_init)))
        self.gamma_2 = nn.Parameter(torch.full((dim,), float(layer_scale_init)))

    def forward(self, x: Tensor, hw: tuple[int, int], prompts: Tensor | None = None) -> Tensor:
        """Maps tokens (B, h * w, C), with prompts (P, C), to tokens of the same shape."""
        prompts = None if prompts is None else self.norm1(prompts)
        x, normed = add_and_norm(self.norm1, x)
        attn = self.drop_path(self.self_attn(normed, hw, prompts, self.gamma_1))
        x, normed = add_and_norm(self.norm2, x, attn)
        hidden = run_linear(self.linear1, normed)
        mlp = run_linear(self.linear2, recomputed(self.act, hidden), self.gamma_2)
        return x + self.drop_path(mlp)


class UniPerceiver(PlainNet):
    """Uni-Perceiver's image encoder as a *net*.

    Names are the official ones, except that `layers` are called `blocks` as in every other net. The
    positions of one grid are resized (bicubic) to that of the image.

    Args:
        norm_layer: makes a norm for a given number of channels. The official adapter has the same
            one in its injectors and extractors.
        layer_scale_init: initial value of layer scale. The official 0 is only useful with
            pre-trained weights, which replace it.
        pretrain_img_size: image side in pixels of the pre-training, for which there are positions.
        others: see `ViT`.

    Raises:
        ValueError: an index is outside the net, a window size is missing, the heads do not divide
            the channels, or a size is not positive.
    """

    def __init__(
        self,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = partial(nn.LayerNorm, eps=1e-5),
        window_size: int | Sequence[int] = 0,
        window_block_indexes: Sequence[int] = (),
        layer_scale_init: float = 0.0,
        pretrain_img_size: int = 224,
        use_act_checkpoint: ActCheckpoint = False,
        out_feature: str = "last_feat",
        *,
        offload_to_cpu: bool = False,
        tuning: Sequence[Tuning] = (),
    ) -> None:
        sizes = dict(patch_size=patch_size, in_chans=in_chans, depth=depth, mlp_ratio=mlp_ratio)
        sizes["pretrain_img_size // patch_size"] = pretrain_img_size // max(patch_size, 1)
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
            final_norm=None,
        )
        windows = block_window_sizes(depth, window_size, window_block_indexes)
        num_patches = (pretrain_img_size // patch_size) ** 2
        patch_embed = VideoPatchEmbed(patch_size, in_chans, embed_dim, num_patches)
        self.visual_embed = nn.Sequential(
            OrderedDict(patch_embed=patch_embed, embeddings_norm=norm_layer(embed_dim))
        )
        self.blocks = nn.ModuleList(
            EncoderLayer(
                embed_dim,
                num_heads,
                mlp_ratio,
                windows[i],
                drop_path_rate * i / max(depth - 1, 1),
                norm_layer,
                layer_scale_init,
            )
            for i in range(depth)
        )
        self.apply(_init_weights)
        tune(self, tuning)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `PlainNet.embed`."""
        x = self.visual_embed(images)
        return x, x.new_zeros(x.shape[0], 0, self.embed_dim)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
