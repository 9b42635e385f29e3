"""What nets have in common: the interface of a net, and parts that several of them use."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from timm.layers import DropPath
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from vitadapter.layers.fast import (
    ActCheckpoint,
    add_and_norm,
    check_act_checkpoint,
    is_plain,
    recomputed,
    run_linear,
    run_with_checkpoint,
)
from vitadapter.layers.fast.switch import is_compiled, is_eager, is_on_gpu
from vitadapter.layers.sizes import holds_for_all_sizes, padding_to
from vitadapter.layers.windows import join_windows, split_windows

from .tuning import Tuning

__all__ = [
    "Block",
    "Mlp",
    "PlainNet",
    "attend_in_windows",
    "block_window_sizes",
    "check_block_indexes",
    "check_heads",
    "check_net_arguments",
    "new_norm_like",
    "project_padded",
    "split_prefix",
]


class PlainNet(Backbone):
    """The interface of a *net*, the plain transformer that `ViTAdapter` wraps.

    Subclasses make `blocks`, which map tokens (B, P + h * w, C), prefix tokens first, to the same
    shape. They call `_set_attributes` and define `embed`.

    Attributes:
        embed_dim: channels C of the tokens.
        depth: number of blocks.
        patch_size: side of a patch in pixels.
        use_act_checkpoint: whether to recompute each block in the backward pass; "layers" for cheap
            layers only (see `run_with_checkpoint`).
        offload_to_cpu: whether what it is recomputed from, its input, waits on the CPU.
        norm: the final norm of pre-training, for those who call `add_final_norm`; else None.
        prompts: learnt tokens (depth, P, C) that patches attend to, if the net is tuned by them.
        tuning: what is trained instead of the net's own weights; see `tune`.
    """

    blocks: nn.ModuleList
    norm: nn.Module | None
    prompts: nn.Parameter | None
    tuning: tuple[Tuning, ...] = ()

    def _set_attributes(
        self,
        embed_dim: int,
        depth: int,
        patch_size: int,
        use_act_checkpoint: ActCheckpoint,
        out_feature: str,
        offload_to_cpu: bool,
        final_norm: Callable[[], nn.Module] | None,
    ) -> None:
        """Sets the attributes, and the name `out_feature` of the output of `forward`.

        This is not a constructor, so that `ViT` can also be a subclass of Detectron2's.
        `final_norm` makes what followed the blocks in pre-training; None if nothing did.

        Raises:
            ValueError: `offload_to_cpu` without `use_act_checkpoint`, or that is unknown.
        """
        check_act_checkpoint(use_act_checkpoint)
        if offload_to_cpu and use_act_checkpoint is not True:
            raise ValueError(
                "offload_to_cpu=True needs use_act_checkpoint=True: it moves the inputs of the "
                "blocks that are recomputed"
            )
        self.embed_dim = embed_dim
        self.depth = depth
        self.patch_size = patch_size
        self.use_act_checkpoint = use_act_checkpoint
        self.offload_to_cpu = offload_to_cpu
        self._make_final_norm = final_norm
        self.norm = None
        self.register_parameter("prompts", None)
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: embed_dim}
        self._out_feature_strides = {out_feature: patch_size}

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        # The patch embedding is the first convolution of a plain ViT.
        first = next(module for module in self.modules() if isinstance(module, nn.Conv2d))
        return first.in_channels

    def add_final_norm(self) -> None:
        """Adds `norm`, the final norm of pre-training, which checkpoints are then loaded into.

        Nets are made without it, since parameters that are not used break distributed training. If
        the net is tuned, it is as frozen as the other weights: `TrainedParts` may name it.

        Raises:
            ValueError: there was no such norm.
        """
        if self._make_final_norm is None:
            raise ValueError(f"{type(self).__name__} has no final norm of its pre-training")
        self.norm = self._make_final_norm()
        if self.tuning:
            for name, parameter in self.norm.named_parameters(prefix="norm"):
                parameter.requires_grad_(any(part.trains(name) for part in self.tuning))

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds patches and positions.

        Args:
            images: normalised images (B, 3, H, W), H and W at least `patch_size`.

        Returns:
            Tokens (B, H / patch_size, W / patch_size, C), and prefix tokens (B, P, C) such as class
            and register tokens, where P may be 0.
        """

    def forward_blocks(
        self, x: Tensor, prefix: Tensor, start: int, stop: int
    ) -> tuple[Tensor, Tensor]:
        """Runs blocks `start` to `stop - 1`.

        Args:
            x: tokens (B, h, w, C).
            prefix: prefix tokens (B, P, C), where P may be 0.
            start: index of the first block.
            stop: index after that of the last block.

        Returns:
            `x` and `prefix` after the blocks.
        """
        hw = (x.shape[1], x.shape[2])
        tokens = x.flatten(1, 2)
        if prefix.shape[1] > 0:
            tokens = torch.cat([prefix, tokens], dim=1)
        for run in self._block_calls(hw, start, stop):
            offloads = self.offload_to_cpu and torch.is_grad_enabled()
            with save_on_cpu(tokens.is_cuda) if offloads else nullcontext():
                tokens = run_with_checkpoint(self.use_act_checkpoint, run, tokens)
        if prefix.shape[1] == 0:
            return tokens.unflatten(1, hw), prefix
        return split_prefix(tokens, hw)

    def blocks_for_any_size(self) -> list[nn.Module]:
        """Returns the blocks that do the same for grids of all sizes, and are called as modules.

        One program serves them for all images: see `vitadapter.engine.compiled_parts`.
        """
        return [*self.blocks]

    def _block_calls(
        self, hw: tuple[int, int], start: int, stop: int
    ) -> list[Callable[[Tensor], Tensor]]:
        """Returns the blocks as functions of tokens (B, P + h * w, C) only."""
        blocks, prompts = self.blocks[start:stop], self._block_prompts(start, stop)
        return [partial(b, hw=hw, prompts=p) for b, p in zip(blocks, prompts, strict=True)]

    def _block_prompts(self, start: int, stop: int) -> Sequence[Tensor | None]:
        """Returns the prompts (P, C) of blocks, None for none."""
        return [None] * (stop - start) if self.prompts is None else [*self.prompts[start:stop]]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps images (B, 3, H, W) to `{out_feature: (B, C, H / patch_size, W / patch_size)}`."""
        x, prefix = self.embed(x)
        x, _ = self.forward_blocks(x, prefix, 0, self.depth)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}


def new_norm_like(norm: nn.Module) -> nn.Module:
    """Returns a norm of the same kind and size as initialised.

    Raises:
        TypeError: it cannot be initialised again.
    """
    new = copy.deepcopy(norm)
    reset = getattr(new, "reset_parameters", None)
    if reset is None:
        raise TypeError(f"a norm with `reset_parameters` is needed, got {type(norm).__name__}")
    reset()
    return new


def split_prefix(tokens: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Splits tokens (B, P + h * w, C) into (B, h, w, C) and prefix tokens (B, P, C)."""
    num_patches = hw[0] * hw[1]
    prefix, x = tokens.split([tokens.shape[1] - num_patches, num_patches], dim=1)
    # One copy here saves one in every norm of the adapter.
    return x.contiguous().unflatten(1, hw), prefix


def project_padded(x: Tensor, layer: nn.Module, hw: tuple[int, int], window_size: int) -> Tensor:
    """Projects the tokens of a grid after padding it with zero tokens to whole windows.

    The zeros are at the bottom and at the right, as in Detectron2 and the official BEiT and
    Uni-Perceiver.

    Args:
        x: tokens (B, h, w, C) or (B, h * w, C).
        layer: the projection from (..., C) to (..., D).
        hw: the grid (h, w).
        window_size: side of the windows in tokens; 0 for none.

    Returns:
        (B, H, W, D), where H and W are multiples of `window_size`. On a GPU and in compiled
        programs, tokens are split into windows before the projection, because C channels are moved
        faster than D; then (B, rows * columns, side, side, D).
    """
    shape = (x.shape[0], *hw, x.shape[-1])
    if window_size > 0 and (is_compiled() or (is_eager() and is_on_gpu(x))):
        return run_linear(layer, split_windows(x.view(shape), window_size))
    bottom, right = (padding_to(side, max(window_size, 1)) for side in hw)
    padding = (0, 0, 0, right, 0, bottom)
    shape = (*shape[:-1], -1)
    if holds_for_all_sizes(bottom == 0) and holds_for_all_sizes(right == 0):
        return run_linear(layer, x).view(shape)
    if not is_plain(layer, nn.Linear):
        return layer(F.pad(x.view(shape), padding))
    # A zero token is projected to the bias, so only the real tokens go through the product.
    projected = F.pad(run_linear(layer, x).view(shape), padding)
    if layer.bias is None:
        return projected
    outside = F.pad(projected.new_zeros(*hw, 1), padding, value=1.0)
    return projected + outside * layer.bias.to(projected.dtype)


def attend_in_windows(
    qkv: Tensor,
    num_heads: int,
    hw: tuple[int, int],
    window_size: int,
    logit_bias: Callable[[Tensor, tuple[int, int]], Tensor] | None = None,
    prompt_qkv: Tensor | None = None,
) -> Tensor:
    """Multi-head self-attention without its projections, inside the windows of a token grid.

    Args:
        qkv: queries, keys and values (B, H, W, 3C) of a grid, which is padded to whole windows with
            zeros if it has not been padded yet; or those of windows (B, rows * columns, side,
            side, 3C).
        num_heads: attention heads.
        hw: the grid (h, w) without padding.
        window_size: side of the windows in tokens; 0 for one window of the whole grid.
        logit_bias: makes what is added to the logits, (N or 1, heads, L, L), from the queries
            (N, heads, L, head_dim) and the (height, width) of a window with L tokens.
        prompt_qkv: the same (P, 3C) of prompts, which every window attends to, without a bias.

    Returns:
        (B, h, w, C).
    """
    windows = None
    if window_size > 0:
        windows = qkv if qkv.dim() == 5 else split_windows(qkv, window_size)
        qkv = windows.flatten(0, 1)
    n, height, width, _ = qkv.shape
    # (N, heads, L, head_dim), split so that their gradients are put together in the order of qkv
    split = qkv.reshape(n, height * width, 3, num_heads, -1).unbind(2)
    q, k, v = (part.transpose(1, 2) for part in split)
    bias = None if logit_bias is None else logit_bias(q, (height, width))
    if prompt_qkv is not None:
        # (3, heads, P, head_dim)
        added = prompt_qkv.view(-1, 3, num_heads, q.shape[-1]).permute(1, 2, 0, 3)
        _, added_k, added_v = added.unsqueeze(1).expand(-1, n, -1, -1, -1)
        k, v = torch.cat([k, added_k], dim=2), torch.cat([v, added_v], dim=2)
        bias = None if bias is None else F.pad(bias, (0, len(prompt_qkv)))
    x = (
        F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        .transpose(1, 2)
        .reshape(n, height, width, -1)
    )
    return x if windows is None else join_windows(x.view(*windows.shape[:-1], -1), hw)


class Mlp(nn.Module):
    """Two linear layers with an activation between them.

    Args:
        dim: channels C of the tokens.
        hidden_dim: channels between the layers.
        act_layer: makes the activation.
    """

    def __init__(self, dim: int, hidden_dim: int, act_layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, gamma: Tensor | None = None) -> Tensor:
        """Maps tokens (..., C) to the same shape, with layer scale gamma (C,)."""
        return run_linear(self.fc2, recomputed(self.act, run_linear(self.fc1, x)), gamma)


class Block(nn.Module):
    """Pre-norm transformer block with optional layer scale; names as in the official ViT.

    Args:
        attn: the attention, called with tokens, grid, prompts and layer scale.
        dim: channels C of the tokens.
        mlp_ratio: hidden width of the MLP, relative to `dim`.
        drop_path: stochastic depth of both branches.
        norm_layer: makes a norm for a given number of channels.
        act_layer: makes the activation of the MLP.
        layer_scale_init: initial value of layer scale; None for no layer scale.
    """

    # Names of the two vectors of layer scale.
    gamma_names = ("gamma1", "gamma2")

    def __init__(
        self,
        attn: nn.Module,
        dim: int,
        mlp_ratio: float,
        drop_path: float,
        norm_layer: Callable[[int], nn.Module],
        act_layer: Callable[[], nn.Module],
        layer_scale_init: float | None,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = attn
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer)
        for name in self.gamma_names:
            gamma = None
            if layer_scale_init is not None:
                gamma = nn.Parameter(torch.full((dim,), float(layer_scale_init)))
            self.register_parameter(name, gamma)
        # Detectron2's convolutional block after some blocks of a ViT, on maps (B, C, h, w).
        self.residual: nn.Module | None = None

    def forward(self, x: Tensor, hw: tuple[int, int], prompts: Tensor | None = None) -> Tensor:
        """Maps tokens (B, N, C) of an h x w grid, with prompts (P, C), to the same shape."""
        gamma1, gamma2 = (getattr(self, name) for name in self.gamma_names)
        prompts = None if prompts is None else self.norm1(prompts)
        x, normed = add_and_norm(self.norm1, x)
        attn = self.drop_path(self.attn(normed, hw, prompts, gamma1))
        x, normed = add_and_norm(self.norm2, x, attn)
        x = x + self.drop_path(self.mlp(normed, gamma2))
        if self.residual is not None:
            grid = x.unflatten(1, hw).permute(0, 3, 1, 2)
            x = self.residual(grid).permute(0, 2, 3, 1).flatten(1, 2)
        return x


def check_net_arguments(sizes: Mapping[str, float | None], drop_path_rate: float) -> None:
    """Refuses arguments that are invalid for all nets.

    Args:
        sizes: arguments that must be positive, by name; None for the net's own value.
        drop_path_rate: must lie in [0, 1).

    Raises:
        ValueError: an argument is invalid.
    """
    wrong = {name: size for name, size in sizes.items() if size is not None and not size > 0}
    if wrong:
        raise ValueError(f"{', '.join(sizes)} must be positive, got {wrong}")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"drop_path_rate must lie in [0, 1), got {drop_path_rate}")


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Raises ValueError unless the number of heads divides that of channels."""
    if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
        raise ValueError(f"num_heads must divide {embed_dim=}, got {num_heads=}")


def check_block_indexes(name: str, indexes: Sequence[int], depth: int) -> None:
    """Raises ValueError unless the argument `name` contains different blocks of a net."""
    if len(set(indexes)) != len(indexes) or not set(indexes) <= set(range(depth)):
        raise ValueError(f"{name} must be distinct and lie in 0..{depth - 1}, got {list(indexes)}")


def block_window_sizes(
    depth: int,
    window_size: int | Sequence[int],
    indexes: Sequence[int],
    global_window_size: int = 0,
) -> list[int]:
    """Returns the side of each block's attention windows in tokens; 0 for global attention.

    Args:
        depth: number of blocks.
        window_size: window size of the blocks `indexes`, one number for all or one for each.
        indexes: `window_block_indexes`, the blocks that attend inside windows.
        global_window_size: window size of all other blocks.

    Raises:
        ValueError: the net does not have the blocks, a window size is not positive, or the sizes do
            not fit the indexes.
    """
    check_block_indexes("window_block_indexes", indexes, depth)
    given = [window_size] if isinstance(window_size, int) else list(window_size)
    sizes = given * len(indexes) if isinstance(window_size, int) else given
    negative = min(global_window_size, *given, 0) < 0
    if len(sizes) != len(indexes) or negative or any(size < 1 for size in sizes):
        raise ValueError(
            "window_size must be at least 1 token (0 if no block has windows), one for all or one "
            "for each block of window_block_indexes, and global_window_size at least 0, "
            f"got {window_size}, {list(indexes)} and {global_window_size}"
        )
    windows = [global_window_size] * depth
    for index, size in zip(indexes, sizes, strict=True):
        windows[index] = size
    return windows
