"""Layers that a user wraps, hooks, parametrises or quantises are called, in training as in testing.

The reference is the same model inside ``plain_layers``, where nothing is computed in another way.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from mask2former_samples import make_head
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils import parametrizations, parametrize, prune

from vitadapter.layers.fast import plain_layers
from vitadapter.modeling.backbone import (
    BEiT,
    ExtraAttention,
    TimmViT,
    UniPerceiver,
    ViT,
    ViTAdapter,
    ViTBaseline,
)
from vitadapter.modeling.mask2former.transformer_decoder import MaskedAttention
from vitadapter.ops import MSDeformAttn

WINDOWS = {"window_size": 3, "window_block_indexes": [0]}
SIZES = {"embed_dim": 16, "depth": 2, "num_heads": 2}


def _adapter(net: nn.Module, **changes: object) -> ViTAdapter:
    settings = dict(
        num_interactions=1,
        num_extra_extractors=1,
        conv_dim=4,
        deform_num_heads=2,
        norm="BN",
        injector_gamma_init=0.5,
    )
    return ViTAdapter(net, **(settings | changes))


def _extra_attention() -> nn.Module:
    return ExtraAttention(_adapter(ViT(**SIZES)), num_heads=2, ffn_ratio=2.0)


class _PixelDecoder(nn.Module):
    """Mask2Former's, over maps cut out of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = make_head().pixel_decoder

    def forward(self, images: Tensor) -> Tensor:
        maps = {f"res{i}": images[:, :1, :: 2**i, :: 2**i].repeat(1, 8, 1, 1) for i in range(2, 6)}
        return self.decoder(maps).mask_features


class _MaskedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = MaskedAttention(16, 2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images[:, :, :16, :16].flatten(1, 2)
        return self.attention(tokens, tokens, tokens)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ViT": lambda: ViT(**SIZES, **WINDOWS, use_rel_pos=True, img_size=96),
    "ViT, padded after qkv": lambda: ViT(**SIZES, **WINDOWS, pad_after_qkv=True),
    "BEiT": lambda: BEiT(**SIZES, **WINDOWS, layer_scale_init=0.5),
    "BEiT with class token": lambda: BEiT(**SIZES, use_cls_token=True, layer_scale_init=0.5),
    "UniPerceiver": lambda: UniPerceiver(**SIZES, **WINDOWS, layer_scale_init=0.5),
    "TimmViT, DINOv2": lambda: TimmViT(
        "vit_small_patch14_dinov2", pretrain_img_size=64, **SIZES, **WINDOWS
    ),
    "TimmViT, EVA-02": lambda: TimmViT(
        "eva02_base_patch16_clip_224", pretrain_img_size=64, **SIZES, **WINDOWS
    ),
    "TimmViT, EVA": lambda: TimmViT(
        "eva_giant_patch14_224", pretrain_img_size=64, **SIZES, **WINDOWS
    ),
    "ViTAdapter": lambda: _adapter(ViT(**SIZES, **WINDOWS)),
    "ViTAdapter, checkpointed": lambda: _adapter(
        ViT(**SIZES, **WINDOWS, use_act_checkpoint=True), use_act_checkpoint=True
    ),
    "ViTBaseline": lambda: ViTBaseline(ViT(**SIZES), block_indexes=[1, 1, 1, 1], norm="BN"),
    "ExtraAttention": _extra_attention,
    "pixel decoder": _PixelDecoder,
    "masked attention": _MaskedAttention,
}


def _make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():  # zeros, or nearly so, would hide what lies behind them
        if parameter.abs().max() < 1e-4:
            nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            nn.init.normal_(module.sampling_offsets.weight, std=0.2)
    return model.double().eval()


def _layers(model: nn.Module, *types: type[nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """(parent, name) of each layer of some types."""
    found = [name for name, module in model.named_modules() if isinstance(module, types)]
    for name in found:
        parent, _, child = name.rpartition(".")
        yield model.get_submodule(parent), child


class LoRA(nn.Module):
    """A low-rank update beside a frozen linear layer; without the attributes of a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class FakeQuantized(nn.Module):
    """Rounds what goes in and out of a layer, with gradients that ignore the rounding."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, *others: object) -> Tensor:
        return self._round(self.base(self._round(x), *others)) * self.scale

    def _round(self, x: Tensor) -> Tensor:
        return x + ((x * 16).round() / 16 - x).detach()


class Scale(nn.Module):
    """A parametrisation that is trained itself."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((), 1.5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


def _replace(model: nn.Module, wrap: Callable[[nn.Module], nn.Module], *types: type) -> None:
    for parent, name in list(_layers(model, *types)):
        setattr(parent, name, wrap(parent.get_submodule(name)))


def add_lora(model: nn.Module) -> None:
    _replace(model, LoRA, nn.Linear)


def wrap_all(model: nn.Module) -> None:
    _replace(model, FakeQuantized, *LAYERS)


def add_parametrisations(model: nn.Module) -> None:
    for parent, name in _layers(model, *LAYERS):
        layer = parent.get_submodule(name)
        if getattr(layer, "weight", None) is not None:
            parametrize.register_parametrization(layer, "weight", Scale())


def add_weight_norm(model: nn.Module) -> None:
    for parent, name in _layers(model, nn.Linear, nn.Conv2d):
        layer = parametrizations.weight_norm(parent.get_submodule(name))
        layer.parametrizations.weight.original0.data.mul_(1.5)


def add_old_weight_norm(model: nn.Module) -> None:
    for parent, name in _layers(model, nn.Linear, nn.Conv2d):
        torch.nn.utils.weight_norm(parent.get_submodule(name)).weight_g.data.mul_(1.5)


def add_pruning(model: nn.Module) -> None:
    for parent, name in _layers(model, nn.Linear, nn.Conv2d):
        prune.l1_unstructured(parent.get_submodule(name), "weight", amount=0.4)


def add_hooks(model: nn.Module) -> None:
    """Each changes what a layer gives or reads."""
    for parent, name in _layers(model, *LAYERS):
        layer = parent.get_submodule(name)
        layer.factor = nn.Parameter(torch.full((), 1.5))
        layer.register_forward_hook(lambda layer, inputs, output: output * layer.factor)
        layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0] + 0.25, *inputs[1:]))


def replace_forward(model: nn.Module) -> None:
    """As libraries that move or quantise weights do it."""
    for parent, name in _layers(model, *LAYERS):
        layer = parent.get_submodule(name)
        forward = layer.forward
        layer.forward = lambda *inputs, forward=forward: forward(*inputs) * 1.5


LAYERS = (
    nn.Linear,
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.LayerNorm,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.GELU,
    nn.ReLU,
)
CHANGES = [
    add_lora,
    wrap_all,
    add_parametrisations,
    add_weight_norm,
    add_old_weight_norm,
    add_pruning,
    add_hooks,
    replace_forward,
]


def _flat(output: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def _run(model: nn.Module, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    model.zero_grad()
    outputs = _flat(model(images))
    torch.manual_seed(1)
    sum((out * torch.randn_like(out)).sum() for out in outputs).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return [out.detach() for out in outputs], grads


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_a_changed_layer_counts_in_training_and_testing(name, change):
    model = _make(name)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = _flat(model(images))
        change(model.float())
        model.double()
        tested = _flat(model(images))
    assert max((a - b).abs().max() for a, b in zip(before, tested, strict=True)) > 1e-3
    with plain_layers():
        expected, expected_grads = _run(model, images)
    trained, grads = _run(model, images)
    for found, plain, without_grad in zip(trained, expected, tested, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(without_grad, plain, rtol=1e-9, atol=1e-9)
    for parameter, plain in expected_grads.items():
        assert (grads[parameter] is None) == (plain is None), parameter
        torch.testing.assert_close(
            grads[parameter], plain, rtol=1e-7, atol=1e-9, msg=lambda m, p=parameter: f"{p}: {m}"
        )
    if change is add_lora:
        lora = {name: grad for name, grad in grads.items() if ".down." in name or ".up." in name}
        assert lora
        assert [name for name, grad in lora.items() if not grad.any()] == []


# timm's EVA adds a bias to qkv's output in place, which PyTorch refuses behind such hooks.
@pytest.mark.parametrize("name", [name for name in MODELS if name != "TimmViT, EVA"])
def test_backward_hooks_see_each_layer_once(name):
    model = _make(name)
    seen: dict[str, int] = {}
    for layer_name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.LayerNorm):
            layer.register_full_backward_hook(
                lambda *_, n=layer_name: seen.__setitem__(n, seen.get(n, 0) + 1)
            )
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with plain_layers():
        _run(model, images)
    expected = dict(seen)
    seen.clear()
    _run(model, images)
    assert expected
    assert seen == expected


def test_hooks_on_all_modules():
    model = _make("ViTAdapter")
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)

    def scale(layer: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        return output * 1.25 if isinstance(layer, nn.LayerNorm | nn.GELU | nn.Linear) else None

    handle = nn.modules.module.register_module_forward_hook(scale)
    try:
        with plain_layers():
            expected, expected_grads = _run(model, images)
        found, grads = _run(model, images)
    finally:
        handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("change", ["hook", "wrapper"])
def test_a_sequence_of_layers_is_called_too(change):
    """The layers of the stem also run one by one."""
    model = _make("ViTAdapter")
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    before, _ = _run(model, images)
    if change == "hook":
        model.spm.stem.register_forward_hook(lambda layer, inputs, output: output * 1.5)
    else:
        model.spm.stem = FakeQuantized(model.spm.stem).double()
    with plain_layers():
        expected, expected_grads = _run(model, images)
    found, grads = _run(model, images)
    assert (found[0] - before[0]).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-7, atol=1e-9)


def test_dropout_inside_a_wrapper_draws_once():
    """What runs again in the backward pass must not draw other random numbers there."""

    class DroppingLoRA(LoRA):
        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(nn.functional.dropout(self.down(x), 0.5))

    model = _make("ViTAdapter")
    _replace(model.float(), DroppingLoRA, nn.Linear)
    model.double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    results = []
    for context in (plain_layers, torch.enable_grad):
        torch.manual_seed(0)
        with context():
            results.append(_run(model, images))
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)


def test_tensor_subclasses_as_weights():
    """Quantised weights are tensors of another class, whose rules PyTorch's functions follow."""

    class Doubled(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is nn.functional.linear:
                x, weight, *bias = (
                    a.as_subclass(Tensor) if isinstance(a, Doubled) else a for a in args
                )
                return nn.functional.linear(x, 2 * weight, *bias)
            return super().__torch_function__(function, types, args, kwargs or {})

    model = _make("ViTAdapter").float()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for parent, name in _layers(model, nn.Linear):
            layer = parent.get_submodule(name)
            weight = layer.weight.detach().as_subclass(Doubled)
            layer.weight = nn.Parameter(weight, requires_grad=False)
        found = _flat(model(images))
        with plain_layers():
            expected = _flat(model(images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        plain = _flat(_make("ViTAdapter").float()(images))
    assert (found[0] - plain[0]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["ViT", "BEiT", "UniPerceiver", "ViTAdapter"])
def test_dynamic_quantisation_reaches_every_linear_layer(name):
    """PyTorch's quantiser replaces layers whose class is exactly `nn.Linear`, and no subclass."""
    model = _make(name).float()
    images = torch.randn(1, 3, 64, 64)
    linear = [n for n, module in model.named_modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        before = _flat(model(images))
        quantised = quantize_dynamic(model, {nn.Linear})
        found = _flat(quantised(images))
        with plain_layers():
            expected = _flat(quantised(images))
    replaced = [n for n, m in quantised.named_modules() if isinstance(m, QuantizedLinear)]
    assert replaced == linear
    assert linear
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    errors = [(a - b).norm() / b.norm() for a, b in zip(found, before, strict=True)]
    assert 0 < max(errors) < 0.1
