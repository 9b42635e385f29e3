"""The plain Vision Transformer: Detectron2's ViT (arXiv 2203.16527) as a net."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.modeling import ViT as Detectron2ViT
from detectron2.modeling.backbone.vit import Attention as Detectron2Attention
from detectron2.modeling.backbone.vit import ResBottleneckBlock
from torch import Tensor, nn

from vitadapter.layers.fast import ActCheckpoint, run_linear

from .plain_net import (
    Block,
    PlainNet,
    attend_in_windows,
    block_window_sizes,
    check_block_indexes,
    check_heads,
    check_net_arguments,
    project_padded,
)
from .positions import absolute_positions, relative_positions
from .tuning import Tuning, tune

__all__ = ["Detectron2Embedding", "ViT", "relative_position_logits"]


class Attention(nn.Module):
    """Multi-head self-attention over a token grid, global or inside windows.

    Args:
        dim: channels C of the tokens.
        num_heads: attention heads; divides `dim`.
        qkv_bias: whether the joint projection has a bias.
        use_rel_pos: whether to add Detectron2's decomposed relative positions to the logits.
        rel_pos_zero_init: whether they start at zero.
        input_size: (height, width) in tokens for which there are relative positions.
        window_size: side of the attention windows in tokens; 0 for global attention.
        pad_after_qkv: how incomplete windows are padded. False (Detectron2): with zero tokens
            before the projection, so that padded keys and values equal its bias. True (official
            ViT-Adapter): with zero queries, keys and values.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool,
        use_rel_pos: bool,
        rel_pos_zero_init: bool,
        input_size: tuple[int, int],
        window_size: int,
        pad_after_qkv: bool,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.pad_after_qkv = pad_after_qkv
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            height, width = (window_size, window_size) if window_size > 0 else input_size
            head_dim = dim // num_heads
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * height - 1, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * width - 1, head_dim))
            if not rel_pos_zero_init:
                nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(
        self,
        x: Tensor,
        hw: tuple[int, int],
        prompts: Tensor | None = None,
        gamma: Tensor | None = None,
    ) -> Tensor:
        """Attends over tokens (B, h * w, C) and prompts (P, C), with layer scale gamma (C,).

        Returns:
            The shape of the tokens.
        """
        if self.pad_after_qkv:
            qkv = run_linear(self.qkv, x).unflatten(1, hw)
        else:
            qkv = project_padded(x, self.qkv, hw, self.window_size)
        bias = relative_position_logits(self) if self.use_rel_pos else None
        prompt_qkv = None if prompts is None else self.qkv(prompts)
        x = attend_in_windows(qkv, self.num_heads, hw, self.window_size, bias, prompt_qkv)
        return run_linear(self.proj, x.flatten(1, 2), gamma)


def relative_position_logits(
    attn: Attention | Detectron2Attention,
) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    """What `attend_in_windows` adds to the logits for Detectron2's decomposed relative positions.

    Args:
        attn: with `rel_pos_h` and `rel_pos_w`.

    Returns:
        Makes (N, heads, H*W, H*W) of queries (N, heads, H*W, head_dim) and (H, W).
    """

    def logits(q: Tensor, hw: tuple[int, int]) -> Tensor:
        h, w = hw
        q = q.unflatten(2, hw)
        rel_h = torch.einsum("nahwc,hkc->nahwk", q, relative_positions(attn.rel_pos_h, h))
        rel_w = torch.einsum("nahwc,wkc->nahwk", q, relative_positions(attn.rel_pos_w, w))
        return (rel_h.unsqueeze(-1) + rel_w.unsqueeze(-2)).flatten(4).flatten(2, 3)

    return logits


class Detectron2Embedding(PlainNet):
    """A net that embeds images as Detectron2's ViT does, without prefix tokens."""

    patch_embed: nn.Module
    pos_embed: nn.Parameter | None
    pretrain_use_cls_token: bool

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patch and position embedding.

        Args:
            images: normalised images (B, 3, H, W), H and W at least `patch_size`.

        Returns:
            Tokens (B, H / patch_size, W / patch_size, C), and no prefix tokens (B, 0, C).
        """
        x = self.patch_embed(images)
        if self.pos_embed is not None:
            hw = (x.shape[1], x.shape[2])
            positions = absolute_positions(self.pos_embed, self.pretrain_use_cls_token, hw)
            x = positions + x  # in this order, the sum is contiguous
        # The convolution has its channels first. One copy here saves one in every norm.
        return x.contiguous(), x.new_zeros(x.shape[0], 0, self.embed_dim)


class ViT(Detectron2Embedding, Detectron2ViT):
    """Detectron2's ViT as a *net*: the plain transformer that `ViTAdapter` wraps.

    Arguments, state dict and outputs are those of `detectron2.modeling.ViT`. It adds

    - the interface of a net, see `PlainNet`;
    - `F.scaled_dot_product_attention`;
    - `pad_after_qkv` and `layer_scale_init`, which the official ViT-Adapter models need, and
      `offload_to_cpu`.

    Like the official models, it has no class token and no final norm.

    Args:
        img_size: image side in pixels for which global blocks have relative positions.
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        embed_dim: channels C of the tokens.
        depth: number of blocks.
        num_heads: attention heads of each block; divides `embed_dim`.
        mlp_ratio: hidden width of the MLPs, relative to `embed_dim`.
        qkv_bias: whether query, key and value have a bias.
        drop_path_rate: stochastic depth of the last block; block i has `rate * i / (depth - 1)`.
        norm_layer: makes a norm for a given number of channels (most pre-trained ViTs need
            `partial(nn.LayerNorm, eps=1e-6)`).
        act_layer: makes the activation of the MLPs.
        use_abs_pos: whether to add absolute position embeddings, resized (bicubic) to the token
            grid.
        use_rel_pos: whether to add Detectron2's decomposed relative positions.
        rel_pos_zero_init: whether relative positions start at zero.
        window_size: side of the attention windows in tokens, one number for all blocks that have
            them or one for each.
        window_block_indexes: blocks that attend inside windows; all others attend globally.
        residual_block_indexes: blocks followed by a convolutional residual block.
        use_act_checkpoint: whether to recompute each block in the backward pass; "layers" for only
            cheap layers (norms, activations), which always happens on a CPU.
        offload_to_cpu: whether the inputs of recomputed blocks wait on the CPU, which frees GPU
            memory and costs transfers.
        pretrain_img_size: image side in pixels of the pre-training, which sets the size of
            `pos_embed`.
        pretrain_use_cls_token: whether `pos_embed` starts with a row for the class token.
        out_feature: name of the output of `forward`.
        pad_after_qkv: whether to pad incomplete windows with zero queries, keys and values
            (official ViT-Adapter), not with projected zero tokens (Detectron2).
        layer_scale_init: initial value of layer scale; None for no layer scale.
        tuning: what is trained instead of the net's own weights (`LoRA`, `VisualPrompts`,
            `TrainedParts`, one or more); empty to train the net itself.

    Raises:
        ValueError: an index is outside the net, a window size is missing, the heads do not divide
            the channels, a size is not positive, `offload_to_cpu` is set without
            `use_act_checkpoint`, that is unknown, or the net has no place for a tuning.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int | Sequence[int] = 0,
        window_block_indexes: Sequence[int] = (),
        residual_block_indexes: Sequence[int] = (),
        use_act_checkpoint: ActCheckpoint = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_feature: str = "last_feat",
        *,
        pad_after_qkv: bool = False,
        layer_scale_init: float | None = None,
        offload_to_cpu: bool = False,
        tuning: Sequence[Tuning] = (),
    ) -> None:
        sizes = dict(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            depth=depth,
            mlp_ratio=mlp_ratio,
            pretrain_img_size=pretrain_img_size,
        )
        check_net_arguments(sizes, drop_path_rate)
        if pretrain_img_size < patch_size:
            raise ValueError(
                f"pretrain_img_size must be at least {patch_size=}, got {pretrain_img_size}"
            )
        check_heads(embed_dim, num_heads)
        check_block_indexes("residual_block_indexes", residual_block_indexes, depth)
        windows = block_window_sizes(depth, window_size, window_block_indexes)
        # With depth 0, Detectron2 builds only the embeddings; the blocks are ours.
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=0,
            num_heads=num_heads,
            use_abs_pos=use_abs_pos,
            pretrain_img_size=pretrain_img_size,
            pretrain_use_cls_token=pretrain_use_cls_token,
            out_feature=out_feature,
        )
        self._set_attributes(
            embed_dim,
            depth,
            patch_size,
            use_act_checkpoint,
            out_feature,
            offload_to_cpu,
            final_norm=partial(norm_layer, embed_dim),
        )
        grid = img_size // patch_size
        for i in range(depth):
            attn = Attention(
                embed_dim,
                num_heads=num_heads,
                qkv_bias=qkv_bias,
                use_rel_pos=use_rel_pos,
                rel_pos_zero_init=rel_pos_zero_init,
                input_size=(grid, grid),
                window_size=windows[i],
                pad_after_qkv=pad_after_qkv,
            )
            block = Block(
                attn,
                embed_dim,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                norm_layer=norm_layer,
                act_layer=act_layer,
                layer_scale_init=layer_scale_init,
            )
            if i in residual_block_indexes:
                block.residual = ResBottleneckBlock(
                    embed_dim, embed_dim, embed_dim // 2, norm="LN", act_layer=act_layer
                )
            self.blocks.append(block)
        self.blocks.apply(self._init_weights)
        tune(self, tuning)
