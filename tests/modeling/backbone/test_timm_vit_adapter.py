"""ViTAdapter over timm's nets: trained, frozen, and as the shared configs put them together."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from vitadapter.model_zoo import get_config
from vitadapter.modeling.backbone import TimmViT, ViTAdapter
from vitadapter.ops import MSDeformAttn
from vitadapter.solver import NoDecayByName, get_optimizer_params

SMALL = dict(depth=4, embed_dim=48, num_heads=4)
LIKE_DINOV3 = dict(model_name="vit_small_patch16_dinov3_qkvb", **SMALL)
LIKE_EVA02 = dict(model_name="eva02_base_patch14_224", **SMALL)
WINDOWED = dict(window_size=3, window_block_indexes=[0, 1, 2, 3])
SETTINGS = [LIKE_DINOV3, LIKE_DINOV3 | WINDOWED, LIKE_EVA02, LIKE_EVA02 | WINDOWED]
NAMES = ["dinov3", "dinov3 windowed", "eva02", "eva02 windowed"]
each_net = pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)


def make_adapter(settings: dict[str, object], **arguments) -> ViTAdapter:
    """All parameters random: zero gates, biases and tiny layer scales would hide mistakes."""
    torch.manual_seed(0)
    net = TimmViT(**settings)
    defaults = dict(conv_dim=16, deform_num_heads=4, norm="BN", injector_gamma_init=0.1)
    adapter = ViTAdapter(net, **defaults | arguments)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        for module in adapter.modules():
            if isinstance(module, MSDeformAttn):
                for linear in (module.sampling_offsets, module.attention_weights):
                    weight = torch.randn(linear.weight.shape, generator=generator)
                    linear.weight.copy_(weight * 0.05)
    return adapter


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


def loss_of(outputs: dict[str, Tensor]) -> Tensor:
    """Weighs values by their place, so that norms cannot make its gradients vanish."""
    loss = torch.zeros(())
    for out in outputs.values():
        weights = torch.linspace(-1, 1, out[0].numel()).view(out.shape[1:])
        loss = loss + (out * weights).sum() / 100
    return loss


@each_net
@pytest.mark.parametrize("use_act_checkpoint", [False, True])
def test_trains(settings, use_act_checkpoint):
    adapter = make_adapter(
        settings | dict(use_act_checkpoint=use_act_checkpoint, drop_path_rate=0.1),
        use_act_checkpoint=use_act_checkpoint,
    ).train()
    outputs = adapter(images())
    for name, spec in adapter.output_shape().items():
        assert outputs[name].shape == (2, 48, 64 // spec.stride, 96 // spec.stride)
        assert outputs[name].isfinite().all()
    loss_of(outputs).backward()
    # A parameter without gradient stops distributed training.
    assert [n for n, p in adapter.named_parameters() if p.grad is None] == []
    assert adapter.net.cls_token.grad.any()
    assert adapter.net.patch_embed.proj.weight.grad.any()


@each_net
def test_an_image_alone_and_in_a_batch_agree_in_outputs_and_gradients(settings):
    """Tokens behind a prefix have strides of their own, which kernels must not stumble over."""
    adapter = make_adapter(settings).double().eval()
    batch = images().double()
    grads = []
    for batches in ([batch], [batch[:1], batch[1:]]):
        adapter.zero_grad()
        outputs = [adapter(part) for part in batches]
        loss_of({name: torch.cat([out[name] for out in outputs]) for name in outputs[0]}).backward()
        grads.append({name: p.grad.clone() for name, p in adapter.named_parameters()})
    for name, expected in grads[0].items():
        # timm resizes positions in float32.
        tolerance = 1e-5 if name == "net.pos_embed" else 1e-9
        torch.testing.assert_close(
            grads[1][name], expected, rtol=tolerance, atol=tolerance, msg=name
        )


@contextmanager
def saved_inside_the_net(adapter: ViTAdapter) -> Iterator[list[int]]:
    """Sizes of the tensors that autograd stores while the net runs."""
    sizes: list[int] = []
    inside = [False]

    def watched(method):
        @functools.wraps(method)
        def call(*args):
            inside[0] = True
            try:
                return method(*args)
            finally:
                inside[0] = False

        return call

    adapter.net.embed = watched(adapter.net.embed)
    adapter.net.forward_blocks = watched(adapter.net.forward_blocks)

    def pack(tensor: Tensor) -> Tensor:
        if inside[0]:
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
    del adapter.net.embed, adapter.net.forward_blocks


@each_net
def test_a_frozen_net_without_injectors_stores_no_activations(settings):
    adapter = make_adapter(settings, freeze_net=True, use_injector=False, vit_feature="stage")
    with saved_inside_the_net(adapter.train()) as sizes:
        outputs = adapter(images())
    assert sizes == []
    loss_of(outputs).backward()
    trained = make_adapter(settings, use_injector=False, vit_feature="stage").train()
    with saved_inside_the_net(trained) as sizes:
        expected = trained(images())
    assert len(sizes) > 0
    loss_of(expected).backward()
    # What is trained gets the gradients that it gets beside a trained net.
    reference = dict(trained.named_parameters())
    for name, parameter in adapter.named_parameters():
        if name.startswith("net."):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
        else:
            torch.testing.assert_close(parameter.grad, reference[name].grad, msg=name)


@each_net
def test_gradients_pass_through_a_frozen_net_to_the_injectors(settings):
    frozen = make_adapter(settings, freeze_net=True, vit_feature="stage").train()
    trained = make_adapter(settings, vit_feature="stage").train()
    for adapter in (frozen, trained):
        loss_of(adapter(images())).backward()
    reference = dict(trained.named_parameters())
    for name, parameter in frozen.named_parameters():
        if name.startswith("net."):
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, reference[name].grad, msg=name)
    assert frozen.interactions[0].injector.gamma.grad.any()


@pytest.mark.parametrize("use_injector", [True, False])
@each_net
def test_training_changes_nothing_of_a_frozen_net(settings, use_injector):
    adapter = make_adapter(settings, freeze_net=True, use_injector=use_injector).train()
    before = {
        name: tensor.detach().clone()
        for name, tensor in (*adapter.net.named_parameters(), *adapter.net.named_buffers())
    }
    groups = get_optimizer_params(
        adapter, base_lr=0.1, weight_decay=0.5, no_decay=NoDecayByName(("none",))
    )
    of_net = {id(parameter) for parameter in adapter.net.parameters()}
    optimised = [parameter for group in groups for parameter in group["params"]]
    assert not of_net & {id(parameter) for parameter in optimised}
    assert len(optimised) == len(list(adapter.parameters())) - len(of_net)
    optimizer = torch.optim.AdamW(groups)
    gate = adapter.spm.stem[0].weight.detach().clone()
    loss_of(adapter(images())).backward()
    optimizer.step()
    assert (adapter.spm.stem[0].weight != gate).any()
    for name, tensor in (*adapter.net.named_parameters(), *adapter.net.named_buffers()):
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, msg=name)


def test_a_frozen_net_stays_in_eval_mode():
    adapter = make_adapter(LIKE_DINOV3 | dict(drop_path_rate=0.9), freeze_net=True, norm="FrozenBN")
    assert not any(module.training for module in adapter.net.modules())
    for mode in (True, False, True):
        nn.Sequential(adapter).train(mode)
        assert adapter.training == adapter.spm.training == mode
        assert not any(module.training for module in adapter.net.modules())
    # No stochastic depth in the net.
    first, second = adapter(images()), adapter(images())
    for name, expected in first.items():
        torch.testing.assert_close(second[name], expected)
    trained = make_adapter(LIKE_DINOV3 | dict(drop_path_rate=0.9), norm="FrozenBN").train()
    assert (trained(images())["res4"] - trained(images())["res4"]).abs().max() > 0.1


def test_frozen_and_trainable_nets_give_equal_outputs():
    settings = dict(use_injector=False, vit_feature="stage")
    frozen = make_adapter(LIKE_DINOV3, freeze_net=True, **settings).eval()
    trained = make_adapter(LIKE_DINOV3, **settings).eval()
    with torch.no_grad():
        expected, found = trained(images()), frozen(images())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("use_injector", [True, False])
def test_a_frozen_net_in_bfloat16_autocast(use_injector):
    adapter = make_adapter(LIKE_DINOV3, freeze_net=True, use_injector=use_injector).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = adapter(images())
    loss_of({name: out.float() for name, out in outputs.items()}).backward()
    assert adapter.spm.stem[0].weight.grad.isfinite().all()
    assert adapter.spm.stem[0].weight.grad.any()


CONFIG = get_config("common/models/timm_vit_adapter.py")
ADAPTERS = sorted(
    name for name in CONFIG if name.startswith("vit_adapter_") and name.count("_") > 2
)


def adapter_config(name: str) -> DictConfig:
    return get_config("common/models/timm_vit_adapter.py")[name]


def test_the_adapters_that_are_promised():
    assert set(ADAPTERS) == {
        *(f"vit_adapter_dinov3_{size}" for size in ("small", "base", "large")),
        *(f"vit_adapter_dinov3_{size}_frozen" for size in ("small", "base", "large", "7b")),
        *(f"vit_adapter_dinov2_reg_{size}" for size in ("small", "base", "large")),
        *(f"vit_adapter_eva02_{size}" for size in ("base", "large")),
        "vit_adapter_siglip2_base",
    }


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_config_builds_at_full_size(name):
    cfg = adapter_config(name)
    with torch.device("meta"):
        adapter = instantiate(cfg)
        sizes = TimmViT(cfg.net.model_name)  # timm's own
        if name.endswith("_frozen"):  # reads its features through the norm
            sizes.add_final_norm()
    assert adapter.net.embed_dim == sizes.embed_dim
    assert adapter.net.depth == sizes.depth
    shapes = {n: p.shape for n, p in sizes.named_parameters()}
    assert {n: p.shape for n, p in adapter.net.named_parameters()} == shapes
    attention = adapter.interactions[0].extractor.attn
    assert attention.value_proj.out_features // cfg.deform_num_heads in (32, 64)
    frozen = name.endswith("_frozen")
    assert adapter.freeze_net == frozen
    assert all(p.requires_grad != frozen for p in adapter.net.parameters())
    assert any("injector" in n for n, _ in adapter.named_parameters()) != frozen
    windowed = {12: 8, 24: 20}.get(adapter.net.depth)
    assert len(adapter.net.window_block_indexes) == (0 if frozen else windowed)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_config_trains_when_cut_down(name):
    cfg = adapter_config(name)
    cfg.net.update(embed_dim=64, depth=4, num_heads=2)
    cfg.net.window_block_indexes = [0, 2] if len(cfg.net.window_block_indexes) > 0 else []
    cfg.update(conv_dim=16, deform_num_heads=2)
    adapter = instantiate(cfg).train()
    loss_of(adapter(images())).backward()
    lacking = [n for n, p in adapter.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
