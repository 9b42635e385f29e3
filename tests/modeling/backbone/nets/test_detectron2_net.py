"""Detectron2's ViT under the adapter, against Detectron2's own forward and against our ViT."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from detectron2.modeling import SwinTransformer, get_vit_lr_decay_rate
from detectron2.modeling import ViT as Detectron2ViT
from torch import Tensor, nn

from vitadapter.modeling.backbone import Detectron2Net, ViT, ViTAdapter, ViTBaseline
from vitadapter.ops import MSDeformAttn
from vitadapter.solver import LayerDecay

SMALL = dict(img_size=96, embed_dim=24, depth=4, num_heads=3, pretrain_img_size=64)
WINDOWED = dict(window_size=4, window_block_indexes=[0, 2])
VITDET = WINDOWED | dict(
    use_rel_pos=True, residual_block_indexes=[1, 2], norm_layer=partial(nn.LayerNorm, eps=1e-6)
)


def randomised(model: nn.Module) -> nn.Module:
    """No parameter left at a value that could hide a mistake (zero biases, unit norms)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def make_adapter(net: nn.Module, **settings: object) -> ViTAdapter:
    torch.manual_seed(0)
    adapter = ViTAdapter(
        net, **dict(conv_dim=8, deform_num_heads=2, norm="BN", injector_gamma_init=0.5) | settings
    )
    for module in adapter.modules():  # the initial zeros would hide the attention
        if isinstance(module, MSDeformAttn):
            nn.init.normal_(module.sampling_offsets.weight, std=0.02)
            nn.init.normal_(module.attention_weights.weight, std=0.1)
    return adapter


def outputs_and_gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Of a backbone, for images that need a gradient too."""
    images = images.detach().clone().requires_grad_()
    outputs = model(images)
    torch.manual_seed(1)
    # Not `randn_like`, whose numbers follow the layout in memory.
    sum((out * torch.randn(out.shape).to(out)).sum() for out in outputs.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return outputs | gradients | {"images": images.grad}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("size", [(96, 96), (96, 160), (70, 33)])
@pytest.mark.parametrize(
    ("wrap", "settings"),
    [
        (make_adapter, {}),
        (make_adapter, WINDOWED),
        (make_adapter, dict(use_rel_pos=True)),
        (make_adapter, VITDET),
        (make_adapter, dict(use_abs_pos=False, qkv_bias=False)),
        (partial(ViTBaseline, norm=""), VITDET),
    ],
    ids=["plain", "windows", "relative positions", "ViTDet", "no positions, no bias", "baseline"],
)
def test_equals_our_vit(
    wrap: Callable[[nn.Module], nn.Module], settings: dict, size: tuple[int, int]
) -> None:
    """Of the same names: positions are those of each image, also where tables are interpolated."""
    theirs = wrap(randomised(Detectron2ViT(**SMALL | settings))).double().eval()
    ours = wrap(ViT(**SMALL | settings)).double().eval()
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(theirs.net, Detectron2Net)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    found, expected = (outputs_and_gradients(model, images) for model in (theirs, ours))
    assert_equal(found, expected, 1e-9)


@pytest.mark.parametrize("settings", [{}, VITDET])
def test_equals_detectron2(settings: dict) -> None:
    vit = randomised(Detectron2ViT(**SMALL | settings)).double()
    images = torch.randn(2, 3, 80, 112, dtype=torch.float64)
    names = list(vit.state_dict())
    expected = outputs_and_gradients(vit, images)
    vit.zero_grad()
    net = Detectron2Net(vit)
    assert_equal(outputs_and_gradients(net, images), expected, 1e-12)
    assert list(net.state_dict()) == names
    assert (net.embed_dim, net.depth, net.patch_size) == (24, 4, 16)
    assert net.output_shape() == vit.output_shape()
    x, prefix = net.embed(images)
    assert prefix.shape == (2, 0, 24)
    for start, stop in ((0, 1), (1, 1), (1, 4)):
        x, prefix = net.forward_blocks(x, prefix, start, stop)
    torch.testing.assert_close(x.permute(0, 3, 1, 2), expected["last_feat"])


def test_its_settings_stay() -> None:
    vit = Detectron2ViT(**SMALL | VITDET, drop_path_rate=0.3, out_feature="feature")
    net = Detectron2Net(vit)
    assert list(net.blocks) == list(vit.blocks)
    assert net.blocks[3].drop_path.drop_prob == pytest.approx(0.3)
    assert list(net(torch.randn(1, 3, 32, 32))) == ["feature"]


@pytest.fixture
def checkpointed() -> ViTAdapter:
    """With fairscale's checkpointing, as Detectron2 applies it."""
    vit = randomised(Detectron2ViT(**SMALL | VITDET, drop_path_rate=0.5, use_act_checkpoint=True))
    assert all("forward" in vars(block) for block in vit.blocks)
    return make_adapter(vit)


def not_checkpointed(adapter: ViTAdapter) -> ViTAdapter:
    plain = make_adapter(Detectron2ViT(**SMALL | VITDET, drop_path_rate=0.5))
    plain.load_state_dict(adapter.state_dict())
    return plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("freeze_net", [False, True])
def test_activation_checkpointing_changes_nothing_but_memory(
    checkpointed: ViTAdapter, dtype: torch.dtype, freeze_net: bool
) -> None:
    """Not under autocast either, where fairscale would recompute in another precision."""

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)

    images, results, stored = torch.randn(1, 3, 96, 96), [], []
    for adapter in (checkpointed, not_checkpointed(checkpointed)):
        adapter.net.requires_grad_(not freeze_net)
        x, prefix = (tokens.detach().requires_grad_() for tokens in adapter.net.embed(images))
        kept = []
        with (
            torch.autograd.graph.saved_tensors_hooks(
                lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
            ),
            autocast(),
        ):
            adapter.net.forward_blocks(x, prefix, 0, 4)
        stored.append(sum(kept))
        torch.manual_seed(2)  # of the stochastic depth
        with autocast():
            results.append(outputs_and_gradients(adapter, images))
    assert stored[0] == 4 * 36 * 24  # the blocks' inputs
    assert stored[1] > 10 * stored[0]
    assert_equal(*results, 0.0)


def test_a_copy_computes_with_its_own_weights(checkpointed: ViTAdapter) -> None:
    """As a moving average of the weights must; fairscale's blocks refer to the original's."""
    images = torch.randn(1, 3, 64, 64)
    average = copy.deepcopy(checkpointed).eval()
    before = average(images)["res5"]
    with torch.no_grad():
        for parameter in checkpointed.net.blocks.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(average(images)["res5"], before, rtol=0, atol=0)


@pytest.mark.parametrize("use_injector", [True, False])
def test_a_frozen_net(use_injector: bool) -> None:
    vit = Detectron2ViT(**SMALL | VITDET, drop_path_rate=0.5, use_act_checkpoint=True)
    adapter = make_adapter(vit, freeze_net=True, use_injector=use_injector).train()
    adapter(torch.randn(2, 3, 64, 64))["res3"].sum().backward()
    assert not adapter.net.training
    assert all(p.grad is None and not p.requires_grad for p in adapter.net.parameters())
    assert adapter.spm.stem[0].weight.grad is not None


def test_layer_wise_learning_rates() -> None:
    """Detectron2's rule and ours agree, but for residual blocks, which Detectron2 takes as new."""
    adapter = make_adapter(Detectron2ViT(**SMALL | VITDET))
    ours = LayerDecay(0.7, 4)
    names = [f"backbone.bottom_up.{name}" for name, _ in adapter.named_parameters()]
    for name in names:
        expected = get_vit_lr_decay_rate(name, lr_decay_rate=0.7, num_layers=4)
        if ".residual." not in name:
            assert ours(name) == pytest.approx(expected), name
    factors = {get_vit_lr_decay_rate(n, lr_decay_rate=0.7, num_layers=4) for n in names}
    assert sorted(factors) == pytest.approx([0.7**power for power in range(5, -1, -1)])


class OwnForward(Detectron2ViT):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return super().forward(2 * x)


@pytest.mark.parametrize("wrap", [make_adapter, ViTBaseline])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: OwnForward(**SMALL), TypeError, "OwnForward has another forward"),
        (lambda: nn.Linear(3, 3), TypeError, "net must be a plain ViT.*Linear lacks embed, forw"),
        (lambda: SwinTransformer(depths=[1] * 4, embed_dim=24), TypeError, "SwinTransformer lacks"),
        (lambda: None, TypeError, "NoneType lacks"),
        (lambda: Detectron2ViT(**SMALL, patch_size=8), ValueError, "must be 16 pixels, got 8"),
    ],
)
def test_what_is_no_net(
    make: Callable[[], nn.Module], error: type, message: str, wrap: Callable
) -> None:
    net = make()
    with pytest.raises(error, match=message):
        wrap(net)
