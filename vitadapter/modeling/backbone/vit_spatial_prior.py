"""Between the baseline and the adapter: a plain ViT with spatial priors (paper table 6, left)."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

from vitadapter.layers.fast import ActCheckpoint, run_with_checkpoint
from vitadapter.ops import MSDeformAttn

from .interaction import Injector, TokenGrids
from .pyramid import pad_images
from .spatial_prior import SpatialPriorModule
from .vit_adapter import check_attention, init_weights, prior_tokens, resize, split_evenly
from .vit_baseline import ViTBaseline

__all__ = ["ViTSpatialPrior"]


class ViTSpatialPrior(ViTBaseline):
    """`ViTBaseline` whose net takes in spatial priors, but whose outputs no extractor makes.

    The paper's "variant 1" adds the priors, and its "variant 2" injects them by attention, where
    `ViTAdapter` has its injectors. The paper does not say more. Its parameter counts are met if the
    outputs are those of the baseline, and if the stride-4 map of the spatial prior module exists;
    as in `ViTAdapter`, it is added to the stride-4 output. The priors are added without a gate.

    Args:
        net: the plain ViT, with patch size 16.
        num_interactions: how often priors are taken in; the net's blocks are split evenly.
        conv_dim, num_points, deform_num_heads, deform_ratio, injector_gamma_init: see `ViTAdapter`.
        prior_norm: norm of the spatial prior module; see `norm` of `ViTAdapter`.
        attention: class of the injectors' attention, see `ViTAdapter`. None to resize the priors to
            stride 16 and add them (variant 1).
        block_indexes, norm_layer, norm: see `ViTBaseline`.

    Raises:
        TypeError: `net` is not a plain ViT, or `attention` is neither a class nor None.
        ValueError: the patch size is not 16, `num_interactions` does not divide the net's depth, or
            block indexes are outside the net or out of order.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        num_interactions: int = 4,
        conv_dim: int = 64,
        num_points: int = 4,
        deform_num_heads: int = 6,
        deform_ratio: float = 1.0,
        injector_gamma_init: float = 0.0,
        prior_norm: str | Callable[[int], nn.Module] = "SyncBN",
        attention: Callable[..., nn.Module] | None = MSDeformAttn,
        block_indexes: Sequence[int] | None = None,
        norm_layer: Callable[[int], nn.Module] | None = partial(nn.LayerNorm, eps=1e-6),
        norm: str | Callable[[int], nn.Module] = "GN",
    ) -> None:
        super().__init__(net, block_indexes=block_indexes, norm_layer=norm_layer, norm=norm)
        dim, last = self.net.embed_dim, self.block_indexes[-1]
        stages = split_evenly(self.net.depth, num_interactions)
        self.starts = [start for start, _ in stages if start <= last]
        self.spm = SpatialPriorModule(conv_dim, dim, prior_norm, self.in_chans)
        self.injectors = None
        if attention is not None:
            check_attention(attention)

            def make_attention(num_levels: int) -> nn.Module:
                return attention(
                    embed_dim=dim,
                    num_heads=deform_num_heads,
                    num_levels=num_levels,
                    num_points=num_points,
                    ratio=deform_ratio,
                )

            self.level_embed = nn.Parameter(torch.randn(3, dim))
            injector_norm = norm_layer or partial(nn.LayerNorm, eps=1e-6)
            self.injectors = nn.ModuleList(
                Injector(dim, make_attention, injector_norm, injector_gamma_init)
                for _ in self.starts
            )
            init_weights(self.injectors)
        init_weights(self.spm)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes multi-scale features; see `ViTAdapter.forward`."""
        images = pad_images(images, self.size_divisibility, self.in_chans)
        # As in `ViTAdapter`, but there is no setting of its own, and nets need not have one.
        follows = getattr(self.net, "use_act_checkpoint", False)
        level: ActCheckpoint = "layers" if follows else False
        c1, *priors = run_with_checkpoint(level, self.spm, images)
        x, prefix = self.net.embed(images)
        inject = self._injection(priors, TokenGrids.of(x.shape[1:3], images.device))
        stops = {index + 1 for index in self.block_indexes}
        cuts = sorted({*self.starts, *stops})
        features = {}
        for start, stop in pairwise(cuts):
            if start in self.starts:
                x = inject(self.starts.index(start), x)
            x, prefix = self.net.forward_blocks(x, prefix, start, stop)
            if stop in stops:
                features[stop - 1] = x
        outputs = self._outputs(features)
        return outputs | {"res2": outputs["res2"] + c1}

    def _injection(
        self, priors: Sequence[Tensor], grids: TokenGrids
    ) -> Callable[[int, Tensor], Tensor]:
        """Returns what updates ViT tokens (B, h, w, C) before stage i."""
        injectors = self.injectors
        if injectors is None:
            first, *others = (resize(prior, grids.vit) for prior in priors)
            added = sum(others, first).permute(0, 2, 3, 1)
            return lambda _, x: x + added
        c = prior_tokens(priors, self.level_embed)
        return lambda i, x: injectors[i](x.flatten(1, 2), c, grids)[0].view(x.shape)
