"""What all nets have in common: activation checkpointing, its inputs on the CPU, and layouts."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from detectron2.modeling import ViT as Detectron2ViT
from torch import nn

from vitadapter.modeling.backbone import BEiT, Detectron2Net, TimmViT, UniPerceiver, ViT

SIZE = dict(embed_dim=24, depth=4, num_heads=2)


def detectron2_net(use_act_checkpoint: bool, offload_to_cpu: bool) -> Detectron2Net:
    vit = Detectron2ViT(**SIZE, use_act_checkpoint=use_act_checkpoint)
    return Detectron2Net(vit, offload_to_cpu=offload_to_cpu)


each_net = pytest.mark.parametrize(
    ("make", "prefix"),
    [
        (partial(ViT, **SIZE, drop_path_rate=0.5), 0),
        (partial(BEiT, **SIZE, img_size=64, use_cls_token=True), 1),
        (partial(UniPerceiver, **SIZE), 0),
        (partial(TimmViT, "vit_small_patch16_dinov3", embed_dim=32, depth=4, num_heads=2), 5),
        (detectron2_net, 0),
    ],
    ids=["ViT", "BEiT", "UniPerceiver", "TimmViT", "Detectron2Net"],
)


@each_net
def test_only_the_inputs_of_blocks_are_kept_and_on_demand_not_even_these(
    make: Callable[..., nn.Module], prefix: int
) -> None:
    """`save_on_cpu` takes them before other hooks see them: they are not kept on the device."""
    gradients, kept = [], []
    for checkpoint, offload in ((False, False), (True, False), (True, True)):
        torch.manual_seed(0)
        net = make(use_act_checkpoint=checkpoint, offload_to_cpu=offload)
        x, tokens = (t.detach().requires_grad_() for t in net.embed(torch.randn(2, 3, 64, 48)))
        torch.manual_seed(1)  # of the stochastic depth
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t
        ):
            out, _ = net.forward_blocks(x, tokens, 0, net.depth)
        kept.append(sum(saved))
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        gradients.append({n: p.grad for n, p in net.blocks.named_parameters()} | {"x": x.grad})
    inputs = net.depth * 2 * (prefix + 4 * 3) * net.embed_dim
    assert kept[0] > 10 * inputs
    assert kept[1:] == [inputs, 0]
    for found in gradients[1:]:
        for name, expected in gradients[0].items():
            torch.testing.assert_close(found[name], expected, msg=name)
    with pytest.raises(ValueError, match="offload_to_cpu=True needs use_act_checkpoint=True"):
        make(use_act_checkpoint=False, offload_to_cpu=True)


@each_net
def test_tokens_are_contiguous(make: Callable[..., nn.Module], prefix: int) -> None:
    """Every norm would copy them if they kept the layout of the patch embedding's convolution."""
    net = make(use_act_checkpoint=False, offload_to_cpu=False)
    x, tokens = net.embed(torch.randn(2, 3, 64, 48))
    assert tokens.shape[1] == prefix
    assert x.is_contiguous()
    assert net.forward_blocks(x, tokens, 0, net.depth)[0].is_contiguous()
