"""The backbone's Python code never makes the host wait for a GPU, forward or backward.

It runs on the meta device, whose tensors stand for a GPU's, as layers run on a GPU. Waiting would
be: a value that is read of a tensor, a shape that depends on values, and a copy from or to the CPU.
Without them, a CUDA graph can capture both passes. The operator's own host code is tested in
``tests/kernels``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitadapter.layers.fast import as_on_gpu
from vitadapter.modeling.backbone import (
    BEiT,
    CSwinAttention,
    GlobalAttention,
    LoRA,
    TimmViT,
    UniPerceiver,
    VisualPrompts,
    ViT,
    ViTAdapter,
    ViTBaseline,
)

WAITS = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape


class WaitingError(Exception):
    pass


class NoWaits(TorchDispatchMode):
    """Refuses operators that would make the host wait."""

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        # `index` has the tag of masks, and is asked for integers as well.
        is_index = func._overloadpacket is torch.ops.aten.index
        by_mask = any(x.dtype in (torch.bool, torch.uint8) for x in leaves[1:])
        if by_mask if is_index else any(tag in func.tags for tag in WAITS):
            raise WaitingError(str(func))
        try:
            out = func(*args, **(kwargs or {}))
        except NotImplementedError as error:  # a copy to the CPU, which this device has no data for
            raise WaitingError(str(func)) from error
        leaves += [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        # A scalar of the CPU is a parameter of the kernel.
        devices = {x.device for x in leaves if x.dim() > 0 or "copy" in func.name()}
        if len(devices) > 1:
            raise WaitingError(f"{func} between {devices}")
        return out


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x + torch.ones(3).to(x),
    ],
    ids=["item", "bool", "tolist", "nonzero", "mask", "cpu", "to", "copy_", "to like"],
)
def test_waiting_is_seen(wait: Callable[[Tensor], object]) -> None:
    with NoWaits(), pytest.raises(WaitingError):
        wait(torch.ones(3, device="meta"))


SIZE: dict[str, Any] = dict(embed_dim=32, depth=2, num_heads=2, drop_path_rate=0.1)
WINDOWS: dict[str, Any] = dict(window_size=3, window_block_indexes=[0])
MODELS: dict[str, Callable[[], nn.Module]] = {
    "ViT": lambda: adapter(ViT(**SIZE, **WINDOWS, use_rel_pos=True), vit_feature="final"),
    "checkpointing": lambda: adapter(
        ViT(**SIZE, use_act_checkpoint=True), use_act_checkpoint=True, feature_norm="net"
    ),
    "frozen": lambda: adapter(ViT(**SIZE), freeze_net=True),
    "LoRA": lambda: adapter(ViT(**SIZE, tuning=[LoRA(2)])),
    "prompts": lambda: adapter(ViT(**SIZE, tuning=[VisualPrompts(2)])),
    "BEiT": lambda: adapter(BEiT(64, **SIZE, **WINDOWS, layer_scale_init=1.0)),
    "BEiT, class token": lambda: adapter(BEiT(64, **SIZE, use_cls_token=True)),
    "Uni-Perceiver": lambda: adapter(UniPerceiver(**SIZE, **WINDOWS)),
    "DINOv3": lambda: adapter(TimmViT("vit_small_patch16_dinov3", **SIZE, **WINDOWS)),
    "global attention": lambda: adapter(ViT(**SIZE), attention=GlobalAttention),
    "stripes": lambda: adapter(ViT(**SIZE), attention=CSwinAttention),
    "baseline": lambda: ViTBaseline(ViT(**{**SIZE, "depth": 4})),
}


def adapter(net: nn.Module, **arguments: Any) -> ViTAdapter:
    return ViTAdapter(
        net, num_interactions=1, conv_dim=8, deform_num_heads=2, drop_path_rate=0.1, **arguments
    )


@pytest.mark.parametrize("name", MODELS)
def test_backbone_does_not_wait(name: str) -> None:
    model = MODELS[name]().to("meta")
    images = torch.empty(2, 3, 80, 96, device="meta")
    with torch.inference_mode():
        model(images)  # what depends on the size of the images is kept from here on
    with NoWaits(), as_on_gpu():
        for training in (True, False):
            outputs = model.train(training)(images)
            sum(out.sum() for out in outputs.values()).backward()
        with torch.no_grad():
            model(images)
