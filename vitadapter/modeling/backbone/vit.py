"""Plain Vision Transformer: Detectron2's ViT (arXiv 2203.16527) behind the net contract."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.modeling import ViT as Detectron2ViT
from detectron2.modeling.backbone.utils import get_abs_pos, get_rel_pos
from detectron2.modeling.backbone.vit import ResBottleneckBlock
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitadapter.layers.fast import Linear, recomputed

from .plain_net import attend_in_windows, block_window_sizes, project_padded

__all__ = ["ViT"]


class Attention(nn.Module):
    """Multi-head self-attention over a token grid, global or inside windows.

    Args:
        dim: channels C of the tokens.
        num_heads: attention heads; divides ``dim``.
        qkv_bias: whether the joint projection has a bias.
        use_rel_pos: whether to add Detectron2's decomposed relative positions to the logits.
        rel_pos_zero_init: whether they start at zero.
        input_size: (height, width) in tokens for which relative positions are stored.
        window_size: side of the attention windows in tokens; 0 is global attention.
        pad_after_qkv: what incomplete windows are filled up with. False (Detectron2): zero tokens
            that are projected, so that padded keys and values equal the projection bias. True
            (official ViT-Adapter): zero queries, keys and values.
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
        self.qkv = Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            height, width = (window_size, window_size) if window_size > 0 else input_size
            head_dim = dim // num_heads
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * height - 1, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * width - 1, head_dim))
            if not rel_pos_zero_init:
                nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Attends over tokens (B, H, W, C) and returns the same shape."""
        hw = tuple(x.shape[1:3])
        if self.pad_after_qkv:
            qkv = self.qkv(x)
        else:
            qkv = project_padded(x, self.qkv, hw, self.window_size)
        bias = self._relative_position_bias if self.use_rel_pos else None
        return self.proj(attend_in_windows(qkv, self.num_heads, hw, self.window_size, bias))

    def _relative_position_bias(self, q: Tensor, hw: tuple[int, int]) -> Tensor:
        """Logit bias (N, heads, H*W, H*W) of queries (N, heads, H*W, head_dim)."""
        h, w = hw
        q = q.unflatten(2, hw)
        rel_h = torch.einsum("nahwc,hkc->nahwk", q, get_rel_pos(h, h, self.rel_pos_h))
        rel_w = torch.einsum("nahwc,wkc->nahwk", q, get_rel_pos(w, w, self.rel_pos_w))
        return (rel_h.unsqueeze(-1) + rel_w.unsqueeze(-2)).flatten(4).flatten(2, 3)


class Mlp(nn.Module):
    """Two linear layers with an activation between them.

    Args:
        dim: channels C of the tokens.
        hidden_dim: channels between the layers.
        act_layer: makes the activation.
    """

    def __init__(self, dim: int, hidden_dim: int, act_layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = act_layer()
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., C) to tokens of the same shape."""
        return self.fc2(recomputed(self.act, self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block on a token grid (B, H, W, C), with optional layer scale.

    Parameter names are Detectron2's; the layer scale vectors are the official ``gamma1, gamma2``.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        attn: Attention,
        drop_path: float,
        norm_layer: Callable[[int], nn.Module],
        act_layer: Callable[[], nn.Module],
        use_residual_block: bool,
        layer_scale_init: float | None,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = attn
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer)
        self.residual = (
            ResBottleneckBlock(dim, dim, dim // 2, norm="LN", act_layer=act_layer)
            if use_residual_block
            else None
        )
        self.gamma1 = self.gamma2 = None
        if layer_scale_init is not None:
            self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale_init)))
            self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale_init)))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) to tokens of the same shape."""
        attn = self.attn(recomputed(self.norm1, x))
        x = x + self.drop_path(attn if self.gamma1 is None else self.gamma1 * attn)
        mlp = self.mlp(recomputed(self.norm2, x))
        x = x + self.drop_path(mlp if self.gamma2 is None else self.gamma2 * mlp)
        if self.residual is not None:
            x = self.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x


class ViT(Detectron2ViT):
    """Detectron2's ViT as a *net*: the plain transformer that ``ViTAdapter`` wraps.

    Same arguments, state dict and outputs as ``detectron2.modeling.ViT``, plus

    - the net contract: ``embed``, ``forward_blocks``, ``embed_dim``, ``depth``, ``patch_size``;
    - ``F.scaled_dot_product_attention``;
    - ``pad_after_qkv`` and ``layer_scale_init``, which the official ViT-Adapter models need.

    Like the official models it drops the pre-trained class token and final norm.

    Args:
        img_size: image side in pixels that sizes the relative positions of global blocks.
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        embed_dim: channels C of the tokens.
        depth: number of blocks.
        num_heads: attention heads of each block; divides ``embed_dim``.
        mlp_ratio: hidden width of the MLPs over ``embed_dim``.
        qkv_bias: whether query, key and value have a bias.
        drop_path_rate: stochastic depth of the last block; block i has ``rate * i / (depth - 1)``.
        norm_layer: makes a norm for a number of channels (pre-trained ViTs mostly need
            ``partial(nn.LayerNorm, eps=1e-6)``).
        act_layer: makes the activation of the MLPs.
        use_abs_pos: whether to add absolute position embeddings (bicubic to the token grid).
        use_rel_pos: whether to add Detectron2's decomposed relative positions.
        rel_pos_zero_init: whether relative positions start at zero.
        window_size: side of the attention windows in tokens, one for all blocks that have them or
            one for each.
        window_block_indexes: blocks that attend inside windows; all others attend globally.
        residual_block_indexes: blocks followed by a convolutional residual block.
        use_act_checkpoint: whether to recompute each block in the backward pass.
        pretrain_img_size: image side in pixels of the pre-training (sizes ``pos_embed``).
        pretrain_use_cls_token: whether ``pos_embed`` starts with a row for the class token.
        out_feature: name of the output of ``forward``.
        pad_after_qkv: fill incomplete windows with zero queries, keys and values (official
            ViT-Adapter) rather than with projected zero tokens (Detectron2).
        layer_scale_init: initial value of the layer scale vectors; None for no layer scale.

    Raises:
        ValueError: an index outside the net, a window size that is missing, heads that do not
            divide the channels, or non-positive sizes.
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
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_feature: str = "last_feat",
        *,
        pad_after_qkv: bool = False,
        layer_scale_init: float | None = None,
    ) -> None:
        _check_sizes(
            (img_size, patch_size, in_chans, embed_dim, depth, num_heads, pretrain_img_size),
            mlp_ratio,
        )
        if pretrain_img_size < patch_size:
            raise ValueError(
                f"pretrain_img_size must be at least {patch_size=}, got {pretrain_img_size}"
            )
        if embed_dim % num_heads:
            raise ValueError(f"num_heads must divide {embed_dim=}, got {num_heads=}")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must lie in [0, 1), got {drop_path_rate}")
        _check_block_indexes("window_block_indexes", window_block_indexes, depth)
        _check_block_indexes("residual_block_indexes", residual_block_indexes, depth)
        windows = block_window_sizes(depth, window_size, window_block_indexes)
        # Depth 0: Detectron2 builds the embeddings, the blocks are ours.
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
        self.embed_dim = embed_dim
        self.depth = depth
        self.patch_size = patch_size
        self.use_act_checkpoint = use_act_checkpoint
        grid = img_size // patch_size
        make_attention = partial(
            Attention,
            embed_dim,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            use_rel_pos=use_rel_pos,
            rel_pos_zero_init=rel_pos_zero_init,
            input_size=(grid, grid),
            pad_after_qkv=pad_after_qkv,
        )
        for i in range(depth):
            block = Block(
                embed_dim,
                mlp_ratio=mlp_ratio,
                attn=make_attention(window_size=windows[i]),
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                norm_layer=norm_layer,
                act_layer=act_layer,
                use_residual_block=i in residual_block_indexes,
                layer_scale_init=layer_scale_init,
            )
            self.blocks.append(block)
        self.blocks.apply(self._init_weights)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patch and position embedding.

        Args:
            images: normalised images (B, 3, H, W), H and W at least ``patch_size``.

        Returns:
            Tokens (B, H / patch_size, W / patch_size, C), and no prefix tokens (B, 0, C).
        """
        x = self.patch_embed(images)
        if self.pos_embed is not None:
            x = x + get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, x.shape[1:3])
        return x, x.new_zeros(x.shape[0], 0, self.embed_dim)

    def forward_blocks(
        self, x: Tensor, prefix: Tensor, start: int, stop: int
    ) -> tuple[Tensor, Tensor]:
        """Runs blocks ``start`` to ``stop - 1`` on tokens (B, h, w, C); returns (x, prefix)."""
        for block in self.blocks[start:stop]:
            if self.use_act_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x, prefix

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) to ``{out_feature: (B, C, H / patch_size, W / patch_size)}``."""
        x, prefix = self.embed(x)
        x, _ = self.forward_blocks(x, prefix, 0, self.depth)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}


def _check_sizes(sizes: Sequence[int], mlp_ratio: float) -> None:
    if min(sizes) < 1 or not mlp_ratio > 0:
        raise ValueError(
            "img_size, patch_size, in_chans, embed_dim, depth, num_heads, pretrain_img_size and "
            f"mlp_ratio must be positive, got {tuple(sizes)} and {mlp_ratio}"
        )


def _check_block_indexes(name: str, indexes: Sequence[int], depth: int) -> None:
    wrong = [i for i in indexes if not 0 <= i < depth]
    if wrong:
        raise ValueError(f"{name} must lie in 0..{depth - 1} ({depth=}), got {wrong}")
    if len(set(indexes)) != len(indexes):
        raise ValueError(f"{name} must not repeat an index, got {list(indexes)}")
