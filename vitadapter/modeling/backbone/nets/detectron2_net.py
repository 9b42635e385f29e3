"""Detectron2's own ViT (arXiv 2203.16527) behind the net contract."""

from collections.abc import Callable, Sequence
from functools import partial

from detectron2.modeling import Backbone
from detectron2.modeling import ViT as Detectron2ViT
from detectron2.modeling.backbone.vit import Block
from torch import Tensor, nn

from .plain_net import attend_in_windows, new_norm_like, project_padded
from .tuning import Tuning, tune
from .vit import Detectron2Embedding, relative_position_logits

__all__ = ["Detectron2Net", "as_net"]

_CONTRACT = ("embed", "forward_blocks", "embed_dim", "depth", "patch_size")


class Detectron2Net(Detectron2Embedding):
    """A built ``detectron2.modeling.ViT`` as a *net*; ``ViTAdapter`` makes it of one by itself.

    Blocks, parameters and their names are those of the ViT, which keeps all of its settings:
    windows, relative positions, residual blocks, stochastic depth, activation checkpointing.

    Where Detectron2 has wrapped the blocks with fairscale's ``checkpoint_wrapper``, PyTorch's
    checkpointing takes its place: fairscale's recomputes a block in float16 under any CUDA
    autocast and without autocast on the CPU, and the blocks of a copied model (a moving average of
    the weights) would compute with the weights of the original.

    Args:
        vit: its parts are taken, not copied.
        offload_to_cpu: whether the inputs of recomputed blocks wait on the CPU, as with fairscale's
            setting of the same name, which Detectron2 does not offer.
        tuning: see ``ViT``.

    Raises:
        TypeError: a subclass that does more than the class in its ``forward``.
        ValueError: ``offload_to_cpu`` of a ViT without ``use_act_checkpoint``, or the ViT has no
            place for a tuning.
    """

    def __init__(
        self,
        vit: Detectron2ViT,
        *,
        offload_to_cpu: bool = False,
        tuning: Sequence[Tuning] = (),
    ) -> None:
        super().__init__()
        if type(vit).forward is not Detectron2ViT.forward:
            raise TypeError(
                f"{type(vit).__name__} has another forward than detectron2.modeling.ViT, "
                f"so that it needs {', '.join(_CONTRACT)} itself to be a net"
            )
        ((out_feature, shape),) = vit.output_shape().items()
        is_wrapped = [_unwrap(block) for block in vit.blocks]
        self._set_attributes(
            shape.channels,
            len(is_wrapped),
            shape.stride,
            any(is_wrapped),
            out_feature,
            offload_to_cpu,
            final_norm=partial(new_norm_like, vit.blocks[-1].norm2),
        )
        self.pretrain_use_cls_token = vit.pretrain_use_cls_token
        self.patch_embed = vit.patch_embed
        self.register_parameter("pos_embed", vit.pos_embed)
        self.blocks = vit.blocks
        tune(self, tuning)

    def blocks_for_any_size(self) -> list[nn.Module]:
        """See `PlainNet`; Detectron2 has formulas for windows that need a program for each size."""
        return [b for b in self.blocks if self.prompts is None and b.window_size == 0]

    def _block_calls(
        self, hw: tuple[int, int], start: int, stop: int
    ) -> list[Callable[[Tensor], Tensor]]:
        def run(block: nn.Module, prompts: Tensor | None, tokens: Tensor) -> Tensor:
            x = tokens.unflatten(1, hw)
            x = block(x) if prompts is None else _run_with_prompts(block, x, prompts)
            return x.flatten(1, 2)

        blocks, prompts = self.blocks[start:stop], self._block_prompts(start, stop)
        return [partial(run, block, p) for block, p in zip(blocks, prompts, strict=True)]


def _run_with_prompts(block: Block, x: Tensor, prompts: Tensor) -> Tensor:
    """Runs Detectron2's block on tokens (B, h, w, C) that also attend to prompts (P, C)."""
    attn, hw = block.attn, (x.shape[1], x.shape[2])
    attended = attend_in_windows(
        project_padded(block.norm1(x), attn.qkv, hw, block.window_size),
        attn.num_heads,
        hw,
        block.window_size,
        relative_position_logits(attn) if attn.use_rel_pos else None,
        attn.qkv(block.norm1(prompts)),
    )
    x = x + block.drop_path(attn.proj(attended))
    x = x + block.drop_path(block.mlp(block.norm2(x)))
    if block.use_residual_block:
        x = block.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return x


def _unwrap(block: nn.Module) -> bool:
    """Takes fairscale's checkpointing off a block; whether there was any."""
    forward = vars(block).get("forward")  # shadows that of the class
    if not (isinstance(forward, partial) and forward.func.__module__.startswith("fairscale.")):
        return False
    del block.forward
    return True


def as_net(net: nn.Module) -> Backbone:
    """What a backbone is given, as a net.

    Args:
        net: has ``embed``, ``forward_blocks``, ``embed_dim``, ``depth`` and ``patch_size``, or is
            Detectron2's ViT.

    Raises:
        TypeError: neither.
    """
    missing = [name for name in _CONTRACT if not hasattr(net, name)]
    if not missing:
        return net
    if isinstance(net, Detectron2ViT):
        return Detectron2Net(net)
    raise TypeError(
        f"net must be a plain ViT: one of vitadapter.modeling.backbone, detectron2.modeling.ViT, "
        f"or a module with {', '.join(_CONTRACT)}; "
        f"{type(net).__name__} lacks {', '.join(missing)}"
    )
