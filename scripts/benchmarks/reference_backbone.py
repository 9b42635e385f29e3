"""The parts of a ViTAdapter that users have elsewhere: what the benchmark compares with.

Detectron2's own ViT as net, and the deformable attention in plain PyTorch. Inside
``vitadapter.layers.fast.plain_layers`` nothing around them is fused or recomputed either.
"""

import torch.nn.functional as F
from detectron2.modeling import ViT as Detectron2ViT
from detectron2.modeling.backbone.utils import get_abs_pos
from detectron2.modeling.backbone.vit import Attention as Detectron2Attention
from torch import Tensor

from benchmarks.deformable_attention import UnfusedMSDeformAttn
from vitadapter.ops import ms_deform_attn_reference

__all__ = ["FusedReferenceNet", "ReferenceAttention", "ReferenceNet"]


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


class _FusedAttention(Detectron2Attention):
    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(batch, height, width, -1))


class FusedReferenceNet(ReferenceNet):
    """The same, whose attention is PyTorch's fused one, without relative positions."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        for block in self.blocks:
            if block.attn.use_rel_pos:
                raise ValueError("FusedReferenceNet has no relative positions, got use_rel_pos")
            block.attn.__class__ = _FusedAttention  # Detectron2's blocks make their attention


class ReferenceAttention(UnfusedMSDeformAttn):
    """The deformable attention with locations, softmax and sampling in plain PyTorch."""

    sample = staticmethod(ms_deform_attn_reference)
