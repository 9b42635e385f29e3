"""What runs on GPUs only, run on the CPU: the same results as elsewhere, and what it keeps."""

import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitadapter.layers.fast import as_on_gpu, plain_layers
from vitadapter.modeling.backbone import BEiT, UniPerceiver, ViT, ViTAdapter

SIZES = dict(embed_dim=24, depth=2, num_heads=2, window_size=2, window_block_indexes=[0])
NETS: dict[str, Callable[[], nn.Module]] = {
    "ViT": lambda: ViT(**SIZES, img_size=64, use_rel_pos=True, rel_pos_zero_init=False),
    "official ViT": lambda: ViT(**SIZES, pad_after_qkv=True, layer_scale_init=0.5),
    "BEiT": lambda: BEiT(**SIZES, img_size=64, global_window_size=3, layer_scale_init=0.5),
    "UniPerceiver": lambda: UniPerceiver(**SIZES, layer_scale_init=0.5),
}


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def adapter(net: nn.Module, **settings: object) -> ViTAdapter:
    settings = dict(num_interactions=2, deform_num_heads=2, conv_dim=4, norm="BN") | settings
    return randomised(ViTAdapter(net, **settings))


def step(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The outputs and the gradients of all parameters."""
    outputs = [*model(images).values()]
    torch.manual_seed(1)
    weights = [torch.randn(out.shape).to(out.dtype) for out in outputs]
    return outputs + list(torch.autograd.grad(outputs, [*model.parameters()], weights))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_equals_the_plain_layers_in_float64(net: str, size: tuple[int, int]) -> None:
    model, images = adapter(NETS[net]()).double(), torch.randn(2, 3, *size).double()
    with as_on_gpu():
        found = step(model, images)
    with plain_layers():
        expected = step(model, images)
    torch.testing.assert_close(found, expected)


def test_differs_from_plain_autocast_by_rounding_only() -> None:
    model, images = adapter(NETS["official ViT"]()), torch.randn(2, 3, 64, 96)
    with plain_layers():
        exact = step(model, images)
        with torch.autocast("cpu", torch.bfloat16):
            plain = step(model, images)
    with as_on_gpu(), torch.autocast("cpu", torch.bfloat16):
        found = step(model, images)
    ratios = []
    for ours, theirs, true in zip(found, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        error, allowed = (ours - true).norm(), (theirs - true).norm()
        assert error <= 4 * allowed + 1e-3 * true.norm()
        ratios.append(float(error / allowed.clamp(min=1e-9)))
    # Of some tensor, the rounding is larger by chance; that of all together is not.
    assert 0.8 < statistics.geometric_mean(r for r in ratios if r > 0) < 1.2


def kept(model: nn.Module, images: Tensor) -> int:
    """Bytes that are kept for the backward pass."""
    sizes: dict[int, int] = {}
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(images)
    assert outputs
    return sum(sizes.values())


def test_levels_of_recomputation_keep_less_and_less() -> None:
    sizes, grads = [], []
    for level in (False, "layers", True):
        net = ViT(**SIZES, use_act_checkpoint=level)
        model = adapter(net, use_act_checkpoint=level)
        images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        with as_on_gpu(), torch.autocast("cpu", torch.bfloat16):
            sizes.append(kept(model, images))
            grads.append(step(model, images))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0])


@pytest.mark.parametrize("level", ["blocks", None, 2])
def test_unknown_levels_are_refused(level: object) -> None:
    with pytest.raises(ValueError, match='use_act_checkpoint must be True, False or "layers"'):
        ViT(**SIZES, use_act_checkpoint=level)
    with pytest.raises(ValueError, match='use_act_checkpoint must be True, False or "layers"'):
        adapter(ViT(**SIZES), use_act_checkpoint=level)
