"""Any plain ViT of timm, by its name, as a net."""

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias, cast

import timm
import torch
from timm.layers import PatchEmbed, RotaryEmbeddingCat
from timm.models import is_model, is_model_in_modules
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitadapter.layers.fast import ActCheckpoint

from .plain_net import (
    PlainNet,
    block_window_sizes,
    check_net_arguments,
    new_norm_like,
    split_prefix,
)
from .positions import resize_positions, rotary_positions
from .timm_windows import WINDOWED_BLOCKS, WindowedBlock, run_block_in_windows
from .tuning import Tuning, tune

__all__ = ["TimmViT"]

TimmModel: TypeAlias = VisionTransformer | Eva

# The modules of timm that define plain ViTs.
_MODULES = ("vision_transformer", "deit", "eva")
_COMMON = ("patch_embed", "cls_token", "reg_token", "pos_embed", "no_embed_class", "norm_pre")
_NEEDED = {VisionTransformer: _COMMON, Eva: (*_COMMON, "rope", "rope_mixed")}


class TimmViT(PlainNet):
    """A plain ViT of timm as a *net*.

    These are DINOv3, EVA-02, BEiT-3, DINOv2 with registers, SigLIP, CLIP, DeiT III, AugReg and all
    other models of timm's classes `VisionTransformer` and `Eva`. Blocks and positions are timm's
    own. Class and register tokens are prefix tokens. For any image size, absolute embeddings are
    resized to the token grid (bicubic with antialias), and rotary ones are computed for it.

    Parameters keep timm's names, so that a timm state dict fits. What comes after the last block
    (final norm, attention pool, classifier) is left out, since `ViTAdapter` uses the outputs of
    blocks, and unused parameters break distributed training. Models that are used frozen, such as
    DINOv3, often have their final norm applied to the features: `ViTAdapter(feature_norm="net")`.

    No weights are loaded: `train.init_checkpoint="timm://..."` does that.

    Args:
        model_name: timm's name of an architecture, without a tag for weights.
        patch_size: side of a patch in pixels. Weights of other patch sizes are resized on loading.
        in_chans: channels of the image.
        pretrain_img_size: image side in pixels for which there are absolute positions. None keeps
            timm's token grid: for example, 37 x 37 patches of 14 pixels become 592 pixels.
        embed_dim: channels C of the tokens; None for the model's own.
        depth: number of blocks; None for the model's own.
        num_heads: attention heads of each block, which divide `embed_dim`; None for the model's
            own.
        drop_path_rate: stochastic depth of the last block; block i has `rate * i / (depth - 1)`.
        window_size: side of the attention windows in tokens, one number for all blocks that have
            them or one for each (see `run_block_in_windows` for incomplete windows, prefix tokens
            and rotary positions).
        window_block_indexes: blocks that attend inside windows; all others attend globally.
        use_act_checkpoint: whether to recompute each block in the backward pass. "layers" is for an
            adapter that follows this setting: timm's own layers are not recomputed one by one.
        offload_to_cpu: whether the inputs of recomputed blocks wait on the CPU, which frees GPU
            memory and costs transfers.
        out_feature: name of the output of `forward`.
        tuning: see `ViT`.

    Raises:
        ValueError: timm does not know the name, it is not that of a plain ViT, or arguments do not
            fit the model or each other.
    """

    def __init__(
        self,
        model_name: str,
        *,
        patch_size: int = 16,
        in_chans: int = 3,
        pretrain_img_size: int | None = None,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        drop_path_rate: float = 0.0,
        window_size: int | Sequence[int] = 0,
        window_block_indexes: Sequence[int] = (),
        use_act_checkpoint: ActCheckpoint = False,
        offload_to_cpu: bool = False,
        out_feature: str = "last_feat",
        tuning: Sequence[Tuning] = (),
    ) -> None:
        super().__init__()
        _check_name(model_name)
        sizes = dict(
            patch_size=patch_size,
            in_chans=in_chans,
            pretrain_img_size=pretrain_img_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
        )
        check_net_arguments(sizes, drop_path_rate)
        if pretrain_img_size is not None and pretrain_img_size % patch_size:
            raise ValueError(
                f"pretrain_img_size must be a multiple of {patch_size=}, got {pretrain_img_size}"
            )
        with torch.device("meta"):  # to refuse a model before it takes memory
            outline = _checked(
                timm.create_model(model_name, num_classes=0, depth=depth),
                model_name,
                len(window_block_indexes) > 0,
            )
        _check_heads(outline, embed_dim, num_heads)
        block_window_sizes(len(outline.blocks), window_size, window_block_indexes)
        if pretrain_img_size is None:
            img_size = tuple(side * patch_size for side in outline.patch_embed.grid_size)
        else:
            img_size = (pretrain_img_size, pretrain_img_size)
        model = timm.create_model(
            model_name,
            num_classes=0,
            img_size=img_size,
            in_chans=in_chans,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            drop_path_rate=drop_path_rate,
            dynamic_img_size=True,
        )
        model = cast(TimmModel, model)
        self._set_attributes(
            model.embed_dim,
            len(model.blocks),
            patch_size,
            use_act_checkpoint,
            out_feature,
            offload_to_cpu,
            final_norm=_maker_of_final_norm(model),
        )
        self.window_size = window_size
        self.window_block_indexes = tuple(window_block_indexes)

        self.patch_embed = model.patch_embed
        self.register_parameter("cls_token", model.cls_token)
        self.register_parameter("reg_token", model.reg_token)
        self.register_parameter("pos_embed", model.pos_embed)
        self._prefix_has_position = not model.no_embed_class
        self.rope = cast(RotaryEmbeddingCat, model.rope) if isinstance(model, Eva) else None
        self._rope_differs_by_block = isinstance(model, Eva) and model.rope_mixed
        self.norm_pre = model.norm_pre
        self.blocks = nn.ModuleList(model.blocks)
        for module in self.blocks.modules():
            if isinstance(module, EvaAttention):
                # Otherwise, timm uses qkv's weight without calling it, ignoring a wrapper (LoRA).
                module.qkv_bias_separate = True
        tune(self, tuning)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `PlainNet.embed`; raises ValueError unless H and W are multiples of `patch_size`."""
        sides = images.shape[2:]
        if images.dim() != 4 or any(side < 1 or side % self.patch_size for side in sides):
            raise ValueError(
                f"images must be (B, 3, H, W) with H and W multiples of {self.patch_size} pixels, "
                f"got {tuple(images.shape)}"
            )
        x = self.patch_embed(images)
        batch, h, w, _ = x.shape
        x = x.flatten(1, 2)
        prefix = [
            token.expand(batch, -1, -1)
            for token in (self.cls_token, self.reg_token)
            if token is not None
        ]
        num_prefix = sum(token.shape[1] for token in prefix)
        if self.pos_embed is None:
            tokens = torch.cat([*prefix, x], dim=1)
        elif self._prefix_has_position:
            tokens = torch.cat([*prefix, x], dim=1) + self._position((h, w), num_prefix)
        else:
            tokens = torch.cat([*prefix, x + self._position((h, w), 0)], dim=1)
        return split_prefix(self.norm_pre(tokens), (h, w))

    def blocks_for_any_size(self) -> list[nn.Module]:
        """See `PlainNet`; how many windows there are is written into programs."""
        windows = block_window_sizes(self.depth, self.window_size, self.window_block_indexes)
        return [b for b, side in zip(self.blocks, windows, strict=True) if side == 0]

    def _block_calls(
        self, hw: tuple[int, int], start: int, stop: int
    ) -> list[Callable[[Tensor], Tensor]]:
        # (h * w, D), or (depth, heads, h * w, D)
        rope = None if self.rope is None else rotary_positions(self.rope, hw)
        windows = block_window_sizes(self.depth, self.window_size, self.window_block_indexes)
        calls: list[Callable[[Tensor], Tensor]] = []
        for index, prompts in zip(
            range(start, stop), self._block_prompts(start, stop), strict=True
        ):
            block: Callable[..., Tensor] = self.blocks[index]
            arguments = {}
            if rope is not None:
                arguments["rope"] = rope[index] if self._rope_differs_by_block else rope
            if windows[index] > 0:
                block = partial(
                    run_block_in_windows,
                    cast(WindowedBlock, block),
                    hw=hw,
                    window_size=windows[index],
                )
            call = partial(block, **arguments)
            if prompts is not None:
                call = partial(_run_with_prompts, call, prompts, hw[0] * hw[1])
            calls.append(call)
        return calls

    def _position(self, hw: tuple[int, int], num_prefix: int) -> Tensor:
        """Returns the absolute position embedding (1, num_prefix + h * w, C) of a token grid."""
        prefix, grid = self.pos_embed.tensor_split([num_prefix], dim=1)
        grid = grid.unflatten(1, self.patch_embed.grid_size)
        grid = resize_positions(grid, hw, antialias=True, dtype=torch.float32)  # as timm
        return torch.cat([prefix, grid.flatten(1, 2)], dim=1)


def _run_with_prompts(
    call: Callable[[Tensor], Tensor], prompts: Tensor, num_patches: int, tokens: Tensor
) -> Tensor:
    """Runs a block on tokens (B, P + num_patches, C) and prompts, which are then dropped."""
    batch, num_tokens, _ = tokens.shape
    prefix, x = tokens.split([num_tokens - num_patches, num_patches], dim=1)
    output = call(torch.cat([prefix, prompts.expand(batch, -1, -1), x], dim=1))
    parts = [prefix.shape[1], len(prompts), num_patches]
    prefix, _, x = output.split(parts, dim=1)
    return torch.cat([prefix, x], dim=1)


def _check_name(model_name: str) -> None:
    if "." in model_name:
        raise ValueError(
            "model_name is an architecture without the tag of its weights (which "
            f"train.init_checkpoint names), got {model_name!r}"
        )
    if not is_model(model_name):
        matches = difflib.get_close_matches(model_name, timm.list_models(), n=5, cutoff=0.6)
        hint = f"; close to it are {', '.join(matches)}" if matches else ""
        raise ValueError(f"timm {timm.__version__} has no model {model_name!r}{hint}")
    if not is_model_in_modules(model_name, _MODULES):
        raise _not_plain(model_name, "another kind of model")


def _not_plain(model_name: str, found: str) -> ValueError:
    return ValueError(
        "model_name must be a plain ViT of timm's classes VisionTransformer or Eva (DINOv3, "
        "EVA-02, BEiT-3, DINOv2, SigLIP, CLIP, DeiT III, AugReg, ...; BEiT has a net of its own), "
        f"got {model_name!r}, which is {found}"
    )


def _checked(model: nn.Module, model_name: str, windowed: bool) -> TimmModel:
    """Returns a model of timm after checking that it has what `TimmViT` needs."""
    if not isinstance(model, VisionTransformer | Eva) or type(model) not in _NEEDED:
        raise _not_plain(model_name, f"a {type(model).__name__}")
    missing = [name for name in _NEEDED[type(model)] if not hasattr(model, name)]
    if missing:
        raise ValueError(
            f"timm >= 1.0.20 is needed: {model_name!r} of timm {timm.__version__} has no "
            f"{', '.join(missing)}"
        )
    if type(model.patch_embed) is not PatchEmbed:
        raise _not_plain(model_name, f"one with a {type(model.patch_embed).__name__}")
    block = model.blocks[0]
    if windowed and type(block) not in WINDOWED_BLOCKS:
        raise ValueError(
            f"window_block_indexes must be empty for {model_name!r}: its {type(block).__name__} "
            "does not attend in windows"
        )
    return model


def _maker_of_final_norm(model: TimmModel) -> Callable[[], nn.Module] | None:
    # Of EVA-02, `fc_norm` is the final norm of pre-training.
    norms = [norm for norm in (model.norm, model.fc_norm) if not isinstance(norm, nn.Identity)]
    return partial(new_norm_like, norms[0]) if norms else None


def _check_heads(outline: TimmModel, embed_dim: int | None, num_heads: int | None) -> None:
    """Raises ValueError unless the heads divide the channels; None is the model's own number."""
    block = outline.blocks[0]
    attn = block.attn if hasattr(block, "attn") else block  # parallel blocks have no `attn`
    dim = embed_dim or outline.embed_dim
    own_heads: int = getattr(attn, "num_heads", 1)
    heads = num_heads or own_heads
    # A rotary embedding rotates pairs of channels, for both directions of the image.
    least = 4 if getattr(outline, "rope", None) is not None else 1
    if dim % heads or dim // heads % least:
        raise ValueError(
            f"num_heads must divide embed_dim={dim} into heads of a multiple of {least} channels, "
            f"got num_heads={heads}"
        )
