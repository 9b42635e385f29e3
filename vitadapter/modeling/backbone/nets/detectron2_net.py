"""Detectron2's own ViT (arXiv 2203.16527) behind the net contract."""

from collections.abc import Callable
from functools import partial

from detectron2.modeling import Backbone
from detectron2.modeling import ViT as Detectron2ViT
from torch import Tensor, nn

from .plain_net import new_norm_like
from .vit import Detectron2Embedding

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

    Raises:
        TypeError: a subclass that does more than the class in its ``forward``.
        ValueError: ``offload_to_cpu`` of a ViT without ``use_act_checkpoint``.
    """

    def __init__(self, vit: Detectron2ViT, *, offload_to_cpu: bool = False) -> None:
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

    def _block_calls(
        self, hw: tuple[int, int], start: int, stop: int
    ) -> list[Callable[[Tensor], Tensor]]:
        def run(block: nn.Module, tokens: Tensor) -> Tensor:
            return block(tokens.unflatten(1, hw)).flatten(1, 2)

        return [partial(run, block) for block in self.blocks[start:stop]]


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
