"""ViTAdapter composed of the parts that users have elsewhere: what the benchmark compares with.

Detectron2's own ViT as net, the deformable attention in plain PyTorch, nothing fused or recomputed.
"""

from unittest import mock

import torch.nn.functional as F
from detectron2.modeling import ViT as Detectron2ViT
from detectron2.modeling.backbone.utils import get_abs_pos
from torch import Tensor, nn

from vitadapter.layers import MSDeformAttn, ms_deform_attn_reference
from vitadapter.layers.convolution import PointwiseConv2d, UpsampleConv2d
from vitadapter.layers.linear import Linear
from vitadapter.modeling.backbone import ViTAdapter, interaction, spatial_prior

__all__ = ["ReferenceAdapter", "ReferenceAttention", "ReferenceNet", "use_plain_layers"]

# PyTorch's own layers, which ours compute in another way.
PLAIN = {Linear: nn.Linear, PointwiseConv2d: nn.Conv2d, UpsampleConv2d: nn.ConvTranspose2d}


class ReferenceAdapter(ViTAdapter):
    """ViTAdapter with nothing recomputed or fused around the attention."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        plain_run = mock.patch.object(
            spatial_prior, "run_and_recompute", lambda modules, x: nn.Sequential(*modules)(x)
        )
        plain_gelu = mock.patch.object(
            interaction, "gelu_linear", lambda x, layer: layer(F.gelu(x))
        )
        plain_norm = mock.patch.object(
            interaction, "norm_linear", lambda x, norm, layer: layer(norm(x))
        )
        with plain_run, plain_gelu, plain_norm:
            return super().forward(images)


class ReferenceNet(Detectron2ViT):
    """Detectron2's ViT, unchanged, behind the net contract."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.embed_dim = settings["embed_dim"]
        self.depth = settings["depth"]
        self.patch_size = settings["patch_size"]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patch_embed(images)
        x = x + get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, x.shape[1:3])
        return x, x.new_zeros(x.shape[0], 0, self.embed_dim)

    def forward_blocks(
        self, x: Tensor, prefix: Tensor, start: int, stop: int
    ) -> tuple[Tensor, Tensor]:
        for block in self.blocks[start:stop]:
            x = block(x)
        return x, prefix


class ReferenceAttention(MSDeformAttn):
    """The deformable attention with locations, softmax and sampling in plain PyTorch."""

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: list[tuple[int, int]],
    ) -> Tensor:
        per_head = (*query.shape[:2], self.num_heads)
        sizes = query.new_tensor([[w, h] for h, w in spatial_shapes])[:, None]
        offsets = self.sampling_offsets(query)
        offsets = offsets.view(*per_head, self.num_levels, self.num_points, 2)
        locations = reference_points[:, :, None, :, None] + offsets / sizes
        weights = self.attention_weights(query).view(*per_head, -1).softmax(-1)
        weights = weights.view(*per_head, self.num_levels, self.num_points)
        value = self.value_proj(value).unflatten(-1, (self.num_heads, -1))
        return self.output_proj(ms_deform_attn_reference(value, spatial_shapes, locations, weights))


def use_plain_layers(model: nn.Module) -> None:
    """Turns every layer that we compute in another way into PyTorch's own."""
    for module in model.modules():
        if type(module) in PLAIN:
            module.__class__ = PLAIN[type(module)]
