"""Backbones whose products are oneDNN's, as on processors where it is faster than the BLAS."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from vitadapter.layers.fast import products
from vitadapter.modeling.backbone import BEiT, UniPerceiver, ViT, ViTAdapter
from vitadapter.ops import MSDeformAttn

NET = dict(embed_dim=24, depth=2, num_heads=2, window_size=3, window_block_indexes=[0])


def step(model: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], Counter]:
    """Outputs and gradients, and how often each operator of PyTorch was called."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        outputs = model(images)
        torch.manual_seed(1)
        sum(
            (out * torch.randn(out.shape, dtype=out.dtype)).sum() for out in outputs.values()
        ).backward()
    found = outputs | {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return found, Counter(event.name for event in profile.events())


@pytest.mark.parametrize(
    "net",
    [partial(ViT, use_rel_pos=True, img_size=64), partial(BEiT, 64), UniPerceiver],
    ids=["ViT", "BEiT", "UniPerceiver"],
)
def test_all_of_them(net: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = ViTAdapter(
        net(**NET), num_interactions=2, vit_feature="final", deform_num_heads=2, norm="LN"
    )
    for module in model.modules():  # the initial zeros would hide the attention
        if isinstance(module, MSDeformAttn):
            nn.init.normal_(module.sampling_offsets.weight, std=0.02)
            nn.init.normal_(module.attention_weights.weight, std=0.1)
    images = torch.randn(2, 3, 64, 96)
    monkeypatch.setattr(products, "_FEWEST_MULTIPLICATIONS", 1)
    results = {}
    for chosen in (False, True):
        monkeypatch.setattr(products, "_is_onednn_faster", lambda chosen=chosen: chosen)
        results[chosen], calls = step(model, images)
        assert (calls["mkldnn::_linear_pointwise"] > 0) == chosen
        assert (calls["aten::linear"] == calls["aten::addmm"] == calls["aten::mm"] == 0) == chosen
    for name, expected in results[False].items():
        largest = float(expected.abs().max())
        torch.testing.assert_close(
            results[True][name], expected, rtol=1e-3, atol=1e-4 * largest, msg=name
        )
