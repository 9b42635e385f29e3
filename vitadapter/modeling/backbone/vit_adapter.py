"""ViT-Adapter (arXiv 2205.08534): a plain ViT as a dense-prediction backbone."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn

from vitadapter.layers.fast import (
    ActCheckpoint,
    UpsampleConv2d,
    add_upsampled,
    run_with_checkpoint,
)
from vitadapter.ops import MSDeformAttn

from .interaction import Extractor, Injector, InteractionBlock, TokenGrids
from .nets import as_net
from .nets.plain_net import PlainNet
from .pyramid import PyramidBackbone, pad_images
from .spatial_prior import SpatialPriorModule

__all__ = ["ViTAdapter"]


class ViTAdapter(PyramidBackbone):
    """A backbone around a plain ViT, with outputs `res2, res3, res4, res5` (strides 4, 8, 16, 32).

    It follows section 3 of the paper, except that, as in the official code, the stride-4 map of the
    spatial prior and the ViT's own features are added to the outputs, which are then normalised.

    `net` has its own settings (window attention, drop path, ...), so that `ViTAdapter` and ViTDet's
    `SimpleFeaturePyramid` can take the same one. It needs `embed(images)`,
    `forward_blocks(x, prefix, start, stop)` and the attributes `embed_dim, depth, patch_size` (see
    `PlainNet`); Detectron2's own ViT becomes a `Detectron2Net`.

    Args:
        net: the plain ViT, with patch size 16.
        num_interactions: number of interaction blocks; the net's blocks are split evenly.
        interaction_indexes: (first, last) block of each interaction, both inclusive. They must
            cover the net's blocks in order, and override `num_interactions`.
        conv_dim: channels of the spatial prior module's stem.
        num_points: sampling points per head and level of the deformable attention; other attention
            has none.
        deform_num_heads: heads of the attention.
        deform_ratio: its value channels, relative to the net's channels.
        ffn_ratio: hidden width of the extractors' FFN, relative to the net's channels; 0 for no
            FFN.
        drop_path_rate: stochastic depth of every extractor's FFN.
        num_extra_extractors: further extractors in the last interaction.
        norm: norm of the spatial prior module and of the outputs: Detectron2's norm name ("SyncBN",
            "BN", "GN", "FrozenBN", ...) or a callable. With a single process, "SyncBN" is BN.
        norm_layer: makes the norms of the injectors and extractors.
        vit_feature: which ViT tokens are added to the outputs: "final" (those of the last block, as
            in the official detection code), "stage" (those of interaction i to output i, of four,
            as in the official segmentation code) or None.
        feature_norm: what normalises these tokens before they are added: None for nothing, as in
            the official code; "net" for the final norm of the net's pre-training, which is loaded
            with the net and the same for all stages, as in DINOv3's own adapter; or, for a new norm
            of each stage, the same as for `norm`, such as "LN". Without a norm, the maps of some
            nets are so small that they add nothing (`vitadapter analyze-model --images`).
        use_injector: whether the adapter's tokens are injected into the ViT.
        injector_gamma_init: initial value of the injectors' gate.
        freeze_net: whether to keep the net in eval mode and not train its parameters. Without
            injectors, it then also runs without gradients and stores no activations. A net with
            `tuning` freezes its own weights, and this setting does not change what it trains.
        attention: class of the attention, called with `embed_dim, num_heads, num_levels,
            num_points, ratio`. Its `forward` is that of `MSDeformAttn`. There are also
            `MSDeformAttnReference`, `GlobalAttention`, `CSwinAttention` and `PaleAttention`.
        use_act_checkpoint: True to recompute the injectors and extractors, and cheap layers of the
            spatial prior module, in the backward pass; "layers" to recompute only cheap layers
            (norms, activations, sampled values), which always happens on a CPU; False to keep
            on a GPU what they give, which is fastest. In the configs, it follows the net's setting
            of the same name.

    Raises:
        TypeError: `net` is not such a ViT, or `attention` is not a class.
        ValueError: the interactions do not cover the net, the patch size is not 16, `vit_feature`
            is unknown or does not fit the interactions, `feature_norm` has nothing to normalise or
            is a norm that the net does not have, or a number is out of range.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        num_interactions: int = 4,
        interaction_indexes: Sequence[Sequence[int]] | None = None,
        conv_dim: int = 64,
        num_points: int = 4,
        deform_num_heads: int = 6,
        deform_ratio: float = 1.0,
        ffn_ratio: float = 0.25,
        drop_path_rate: float = 0.0,
        num_extra_extractors: int = 2,
        norm: str | Callable[[int], nn.Module] = "SyncBN",
        norm_layer: Callable[[int], nn.Module] = partial(nn.LayerNorm, eps=1e-6),
        vit_feature: str | None = "final",
        feature_norm: str | Callable[[int], nn.Module] | None = None,
        use_injector: bool = True,
        injector_gamma_init: float = 0.0,
        freeze_net: bool = False,
        attention: Callable[..., nn.Module] = MSDeformAttn,
        use_act_checkpoint: ActCheckpoint = False,
    ) -> None:
        net = as_net(net)
        super().__init__(net)
        self.stages = (
            split_evenly(net.depth, num_interactions)
            if interaction_indexes is None
            else _stages(net.depth, interaction_indexes)
        )
        _check_vit_feature(vit_feature, len(self.stages))
        check_attention(attention)
        if not (0 <= drop_path_rate < 1 and ffn_ratio >= 0 and num_extra_extractors >= 0):
            raise ValueError(
                "drop_path_rate in [0, 1), ffn_ratio >= 0 and num_extra_extractors >= 0 are "
                f"needed, got {drop_path_rate=}, {ffn_ratio=}, {num_extra_extractors=}"
            )
        self.use_act_checkpoint = use_act_checkpoint
        self.vit_feature = vit_feature
        self.feature_norm = feature_norm
        # A tuned net has frozen itself. In training mode, the dropout of its tuning acts.
        self.freeze_net = freeze_net and not getattr(net, "tuning", ())

        dim = net.embed_dim
        self.level_embed = nn.Parameter(torch.zeros(3, dim))
        self.spm = SpatialPriorModule(conv_dim, dim, norm, self.in_chans)

        def make_attention(num_levels: int) -> nn.Module:
            return attention(
                embed_dim=dim,
                num_heads=deform_num_heads,
                num_levels=num_levels,
                num_points=num_points,
                ratio=deform_ratio,
            )

        def make_interaction(num_extractors: int) -> InteractionBlock:
            injector = Injector(dim, make_attention, norm_layer, injector_gamma_init)
            extractor, *extra = (
                Extractor(dim, make_attention, norm_layer, ffn_ratio, drop_path_rate)
                for _ in range(num_extractors)
            )
            return InteractionBlock(
                injector if use_injector else None, extractor, extra, use_act_checkpoint
            )

        extractors = [1] * (len(self.stages) - 1) + [1 + num_extra_extractors]
        interactions = nn.ModuleList(make_interaction(number) for number in extractors)
        self.interactions = cast(Sequence[InteractionBlock], interactions)
        self.up = UpsampleConv2d(dim, dim)
        for level in range(1, 5):
            self.add_module(f"norm{level}", get_norm(norm, dim) or nn.Identity())
        init_weights(self)
        nn.init.normal_(self.level_embed)

        # Last, so that the initialisation above leaves a pre-trained net alone.
        self.net = net
        self.feature_norms = self._make_feature_norms(feature_norm)
        self._net_has_grad = use_injector or not self.freeze_net
        if self.freeze_net:
            net.requires_grad_(False)
            net.eval()

    def train(self, mode: bool = True) -> "ViTAdapter":
        """Sets training mode; a frozen net stays in eval mode."""
        super().train(mode)
        if self.freeze_net:
            self.net.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes multi-scale features of images.

        Args:
            images: normalised images (B, 3, H, W) of any size. They are padded with zeros at the
                bottom and right to multiples of 32.

        Returns:
            `res2 .. res5`: (B, C, H' / s, W' / s), for s = 4, 8, 16, 32 and the padded size H' x
            W'.

        Raises:
            ValueError: wrong shape; or in training, batch norm has only one value per channel (all
                processes together have one image of at most 32 x 32 pixels): use `norm="GN"`.
        """
        maps, vit_maps = self.forward_maps(images)
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return {
            name: norm(own if vit is None else own + vit)
            for name, norm, own, vit in zip(self._out_features, norms, maps, vit_maps, strict=True)
        }

    def forward_maps(self, images: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """Computes what `forward` adds and normalises.

        Args:
            images: see `forward`.

        Returns:
            For each output, the adapter's map, and that of the ViT in the same shape, which is None
            with `vit_feature=None`.
        """
        images = pad_images(images, self.size_divisibility, self.in_chans)
        level: ActCheckpoint = "layers" if self.use_act_checkpoint else False
        c1, *priors = run_with_checkpoint(level, self.spm, images)
        c = prior_tokens(priors, self.level_embed)
        branch: Tensor | None = None  # what is left to be added to c, in the next norm
        with self._net_grad_mode():
            x, prefix = self.net.embed(images)
        grids = TokenGrids.of(x.shape[1:3], images.device)
        features = []
        for interaction, (start, stop) in zip(self.interactions, self.stages, strict=True):
            x, c, branch = interaction.inject(x, c, branch, grids)
            with self._net_grad_mode():
                x, prefix = self.net.forward_blocks(x, prefix, start, stop)
            c, branch, x = interaction.extract(c, branch, x, grids)
            features.append(x)
        c2, c3, c4 = grids.to_maps(c if branch is None else c + branch)
        return [add_upsampled(self.up, c2, c1), c2, c3, c4], self._vit_maps(features, grids.vit)

    def _net_grad_mode(self) -> AbstractContextManager[None]:
        """Returns a context without gradients for a frozen net, unless the injectors need them."""
        return nullcontext() if self._net_has_grad else torch.no_grad()

    def _make_feature_norms(
        self, feature_norm: str | Callable[[int], nn.Module] | None
    ) -> nn.ModuleList | None:
        """Makes the norms of the ViT's features; those of the net are its own."""
        if feature_norm in (None, ""):
            return None
        if self.vit_feature is None:
            raise ValueError(f"{feature_norm=} has nothing to normalise with vit_feature=None")
        if feature_norm == "net":
            if not isinstance(self.net, PlainNet):
                raise ValueError(
                    f'feature_norm="net" needs a net with `add_final_norm`, such as those of '
                    f"vitadapter.modeling.backbone, got {type(self.net).__name__}"
                )
            self.net.add_final_norm()
            return None
        number = len(self.stages) if self.vit_feature == "stage" else 1
        norms = [get_norm(feature_norm, self.net.embed_dim) for _ in range(number)]
        return nn.ModuleList(norm for norm in norms if norm is not None)

    def _vit_maps(self, features: list[Tensor], hw: tuple[int, int]) -> list[Tensor | None]:
        """Resizes the ViT tokens (B, h, w, C) of each stage to the outputs that they belong to."""
        if self.vit_feature is None:
            return [None] * 4
        used = features if self.vit_feature == "stage" else features[-1:]
        if self.feature_norm == "net":
            used = [self.net.norm(x) for x in used]
        maps = [x.permute(0, 3, 1, 2) for x in used]
        if self.feature_norms is not None:
            maps = [norm(x) for norm, x in zip(self.feature_norms, maps, strict=True)]
        h, w = hw
        sizes = ((4 * h, 4 * w), (2 * h, 2 * w), (h, w), (h // 2, w // 2))
        sources = maps if len(maps) == 4 else maps * 4
        return [resize(x, size) for x, size in zip(sources, sizes, strict=True)]


def check_attention(attention: object) -> None:
    """Raises TypeError unless `attention` can make the attention of injectors and extractors."""
    if not callable(attention):
        raise TypeError(
            "attention must be a class such as MSDeformAttn, GlobalAttention, CSwinAttention or "
            f"PaleAttention (or None for ViTSpatialPrior), got {attention!r}"
        )


def prior_tokens(priors: Sequence[Tensor], level_embed: Tensor) -> Tensor:
    """Makes tokens (B, 21 * h * w / 4, C) of the maps of strides 8, 16 and 32."""
    return torch.cat(
        [
            prior.flatten(2).transpose(1, 2) + embed
            for prior, embed in zip(priors, level_embed, strict=True)
        ],
        dim=1,
    )


def init_weights(adapter: nn.Module) -> None:
    """Initialises the parts of an adapter as the official code.

    The attention, which initialises itself, is left alone.
    """
    attention = {
        module
        for part in adapter.modules()
        if isinstance(part, Injector | Extractor)
        for module in part.attn.modules()
    }
    for module in adapter.modules():
        if module in attention:
            continue
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            kernel = math.prod(module.kernel_size)
            fan_out = kernel * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def resize(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes (B, C, h, w) bilinearly to `size`, unless it has that size already."""
    if feature.shape[2:] == size:
        return feature
    return F.interpolate(feature, size=size, mode="bilinear", align_corners=False)


def split_evenly(depth: int, num_interactions: int) -> tuple[tuple[int, int], ...]:
    """Returns (start, stop) of each interaction's blocks."""
    if not isinstance(num_interactions, int) or num_interactions < 1 or depth % num_interactions:
        raise ValueError(
            f"num_interactions must be an integer that divides the net's depth {depth} (ViTAdapter "
            f"also takes interaction_indexes), got {num_interactions!r}"
        )
    step = depth // num_interactions
    return tuple((start, start + step) for start in range(0, depth, step))


def _stages(depth: int, indexes: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Converts inclusive (first, last) block indexes to (start, stop), and checks them."""
    listed = [list(pair) for pair in indexes]
    blocks = [i for pair in listed if len(pair) == 2 for i in range(pair[0], pair[1] + 1)]
    if any(len(pair) != 2 or pair[0] > pair[1] for pair in listed) or blocks != [*range(depth)]:
        raise ValueError(
            f"interaction_indexes must be (first, last) pairs that cover blocks 0..{depth - 1} of "
            f"the net in order, got {listed}"
        )
    return tuple((first, last + 1) for first, last in listed)


def _check_vit_feature(vit_feature: str | None, num_interactions: int) -> None:
    if vit_feature not in ("final", "stage", None):
        raise ValueError(f'vit_feature must be "final", "stage" or None, got {vit_feature!r}')
    if vit_feature == "stage" and num_interactions != 4:
        raise ValueError(
            'vit_feature="stage" needs four interactions, one for each output, '
            f"got {num_interactions}"
        )
