"""LoRA, visual prompts and partly frozen nets, of every net."""

import copy
import math
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.modeling import ViT as Detectron2ViT
from detectron2.modeling.backbone.utils import add_decomposed_rel_pos
from torch import Tensor, nn

from vitadapter.checkpoint.loading import check_plan, plan_load
from vitadapter.layers.fast import plain_layers
from vitadapter.modeling.backbone import (
    BEiT,
    Detectron2Net,
    LoRA,
    TimmViT,
    TrainedParts,
    UniPerceiver,
    VisualPrompts,
    ViT,
    ViTAdapter,
    ViTBaseline,
    merge_lora,
)
from vitadapter.modeling.backbone.nets.tuning import LoRALinear, is_added, tune
from vitadapter.solver import LayerDecay, NoDecayOneDim, get_optimizer_params

SIZE = dict(embed_dim=32, depth=4, num_heads=2)
WINDOWS = dict(window_size=2, window_block_indexes=[0, 2])  # 4 x 6 tokens: whole windows
ALL = ("qkv", "proj", "fc1", "fc2")
NETS: dict[str, Callable[..., nn.Module]] = {
    "ViT": lambda **kw: ViT(**SIZE, **WINDOWS, use_rel_pos=True, rel_pos_zero_init=False, **kw),
    "ViT, padded": lambda **kw: ViT(**SIZE, **WINDOWS, pad_after_qkv=True, **kw),
    "BEiT": lambda **kw: BEiT(64, **SIZE, **WINDOWS, layer_scale_init=1.0, **kw),
    "BEiT, class token": lambda **kw: BEiT(
        64, **SIZE, use_cls_token=True, layer_scale_init=1.0, **kw
    ),
    "Uni-Perceiver": lambda **kw: UniPerceiver(**SIZE, **WINDOWS, layer_scale_init=1.0, **kw),
    "Detectron2": lambda **kw: Detectron2Net(
        Detectron2ViT(**SIZE, **WINDOWS, img_size=64, use_rel_pos=True, rel_pos_zero_init=False),
        **kw,
    ),
    "DINOv3": lambda **kw: TimmViT("vit_small_patch16_dinov3", **SIZE, **WINDOWS, **kw),
    "EVA-02": lambda **kw: TimmViT("eva02_base_patch14_224", **SIZE, **kw),
    "parallel": lambda **kw: TimmViT("vit_small_patch16_18x2_224", **SIZE, **kw),
}
each_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def tuned(make: Callable[..., nn.Module], *tuning, seed: int = 0) -> nn.Module:
    """A net whose parameters, those of the tuning too, are random; the same ones for each seed."""
    torch.manual_seed(seed)
    net = make(tuning=tuning).double().eval()
    for name, parameter in net.named_parameters():
        generator = torch.Generator().manual_seed(len(name) + sum(map(ord, name)))
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.add_(0.2 * noise)
    return net


def run(net: nn.Module) -> Tensor:
    x, _ = net.forward_blocks(*net.embed(IMAGES.double()), 0, net.depth)
    return x


@each_net
def test_lora_starts_as_the_net_itself_and_keeps_its_names(make):
    torch.manual_seed(0)
    plain = make().eval()
    net = make(tuning=[LoRA(2, projections=ALL)]).eval()
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert missing
    assert all(is_added(name) for name in missing)
    assert torch.equal(net(IMAGES)["last_feat"], plain(IMAGES)["last_feat"])


@each_net
def test_what_is_merged_computes_the_same_and_is_a_plain_net(make):
    net = tuned(make, LoRA(2, alpha=3.0, projections=ALL))
    merged = merge_lora(net)
    assert any(isinstance(module, LoRALinear) for module in net.modules())
    assert not any(isinstance(module, LoRALinear) for module in merged.modules())
    torch.testing.assert_close(run(merged), run(net), rtol=1e-10, atol=1e-10)
    plain = make().double().eval()
    plain.load_state_dict(merged.state_dict())
    torch.testing.assert_close(run(plain), run(merged), rtol=1e-12, atol=1e-12)
    assert (run(plain) - run(tuned(make))).abs().max() > 1e-3
    assert merge_lora(plain) is plain


def test_a_layer_alone_and_one_in_several_places_are_merged():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(6, 6), rank=3, scale=0.5, dropout=0.0).eval()
    nn.init.normal_(layer.lora_b)
    x = torch.randn(4, 6)
    merged = merge_lora(layer)
    assert type(merged) is nn.Linear
    assert not merged.training
    torch.testing.assert_close(merged(x), layer(x))
    shared = nn.Sequential(layer, nn.Sequential(layer, layer))
    merged = merge_lora(shared)
    assert merged[0] is merged[1][0] is merged[1][1]
    assert type(merged[0]) is nn.Linear
    torch.testing.assert_close(merged(x), shared(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("update_dtype", [None, torch.float32])
def test_merged_weights_of_half_precision_are_rounded_once(dtype, update_dtype):
    """Whether or not the updates have the precision of the weights, which keep theirs."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(64, 48), rank=8, scale=1.7, dropout=0.0)
    nn.init.normal_(layer.lora_b)
    layer = layer.to(dtype)
    for name in ("lora_a", "lora_b"):
        factor = getattr(layer, name)
        factor.data = factor.data.to(update_dtype or dtype)
    weight, a, b = (p.detach().float() for p in (layer.weight, layer.lora_a, layer.lora_b))
    assert torch.equal(layer.merged().weight, (weight + 1.7 * (b @ a)).to(dtype))


def test_an_update_is_the_product_of_its_factors():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(6, 5), rank=3, scale=0.5, dropout=0.0)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(2, 4, 6)
    weight = layer.weight + 0.5 * layer.lora_b @ layer.lora_a
    expected = F.linear(x, weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    with plain_layers():
        torch.testing.assert_close(layer(x), expected)


def test_dropout_acts_on_the_update_only_and_only_in_training():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(64, 5), rank=3, scale=1.0, dropout=0.5)
    x = torch.randn(4, 64)
    assert torch.equal(layer.train()(x), F.linear(x, layer.weight, layer.bias))  # B is zero
    nn.init.normal_(layer.lora_b)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@each_net
@pytest.mark.parametrize("checkpointed", [False, True])
def test_only_what_is_added_gets_gradients(make, checkpointed):
    net = tuned(make, LoRA(2, projections=ALL), VisualPrompts(3))
    net.use_act_checkpoint = checkpointed
    run(net).square().sum().backward()
    added = {name: p for name, p in net.named_parameters() if is_added(name)}
    # Every layer is called; none is bypassed.
    assert all(parameter.grad.abs().sum() > 0 for parameter in added.values())
    frozen = [p for name, p in net.named_parameters() if name not in added]
    assert not any(p.requires_grad for p in frozen)
    assert all(p.grad is None for p in frozen)


def dense_block(net: nn.Module, index: int, x: Tensor, prompts: Tensor) -> Tensor:
    """A block of our nets or of Detectron2's on a grid, by concatenation and a plain softmax.

    Prompts are tokens like all others of each window, and are then left out.
    """
    block = net.blocks[index]
    attn = block.self_attn if isinstance(net, UniPerceiver) else block.attn
    names = ("in_proj", "out_proj") if isinstance(net, UniPerceiver) else ("qkv", "proj")
    qkv_layer, proj = (getattr(attn, name) for name in names)
    batch, h, w, dim = x.shape
    side = 2 if index in WINDOWS["window_block_indexes"] else None
    normed, attended = block.norm1(x), torch.empty_like(x)
    for top in range(0, h, side or h):
        for left in range(0, w, side or w):
            part = (slice(None), slice(top, top + (side or h)), slice(left, left + (side or w)))
            window = normed[part]
            hw = window.shape[1:3]
            added = block.norm1(prompts).expand(batch, -1, -1)
            qkv = qkv_layer(torch.cat([added, window.flatten(1, 2)], dim=1))
            if isinstance(net, BEiT):
                zeros = torch.zeros_like(attn.q_bias)
                qkv = qkv + torch.cat([attn.q_bias, zeros, attn.v_bias])
            q, k, v = qkv.unflatten(2, (3, 2, dim // 2)).permute(2, 0, 3, 1, 4)
            logits = q @ k.transpose(2, 3) / math.sqrt(dim // 2)
            number = len(prompts)
            inner = logits[:, :, number:, number:]
            if isinstance(net, BEiT):
                inner += attn.relative_position_bias(hw)
            elif getattr(attn, "use_rel_pos", False):
                table = (attn.rel_pos_h, attn.rel_pos_w)
                bias = torch.zeros_like(inner).flatten(0, 1)
                queries = q[:, :, number:].flatten(0, 1)
                inner += add_decomposed_rel_pos(bias, queries, *table, hw, hw).view_as(inner)
            values = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
            attended[part] = proj(values[:, number:]).unflatten(1, hw)
    gammas = [getattr(block, f"gamma_{i}", None) for i in (1, 2)]
    gamma1, gamma2 = (1.0 if gamma is None else gamma for gamma in gammas)
    x = x + gamma1 * attended
    if isinstance(net, UniPerceiver):
        return x + gamma2 * block.linear2(F.gelu(block.linear1(block.norm2(x))))
    return x + gamma2 * block.mlp(block.norm2(x))


@pytest.mark.parametrize("name", ["ViT", "ViT, padded", "BEiT", "Uni-Perceiver", "Detectron2"])
def test_prompts_are_tokens_of_every_window(name):
    net = tuned(NETS[name], VisualPrompts(3))
    x, _ = net.embed(IMAGES.double())
    for index in range(net.depth):
        x = dense_block(net, index, x, net.prompts[index])
    torch.testing.assert_close(run(net), x, rtol=1e-9, atol=1e-9)


def test_prompts_beside_a_class_token():
    net = tuned(NETS["BEiT, class token"], VisualPrompts(3))
    block, prompts = net.blocks[0], net.prompts[0]
    x, prefix = net.embed(IMAGES.double())
    tokens = torch.cat([prefix, x.flatten(1, 2)], dim=1)
    attn, number = block.attn, len(prompts)
    bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
    sequence = torch.cat([prompts.expand(2, -1, -1), tokens], dim=1)
    qkv = attn.qkv(block.norm1(sequence)) + bias
    q, k, v = qkv.unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(2, 3) / 4
    logits[:, :, number:, number:] += attn.relative_position_bias(x.shape[1:3])
    values = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    tokens = tokens + block.gamma_1 * attn.proj(values[:, number:])
    tokens = tokens + block.gamma_2 * block.mlp(block.norm2(tokens))
    found, found_prefix = net.forward_blocks(x, prefix, 0, 1)
    torch.testing.assert_close(torch.cat([found_prefix, found.flatten(1, 2)], dim=1), tokens)


@pytest.mark.parametrize("model_name", ["vit_small_patch16_dinov3", "eva02_base_patch14_224"])
def test_prompts_of_timms_blocks_have_no_rotation(model_name):
    def make(**settings) -> TimmViT:
        return TimmViT(model_name, **SIZE, **settings)

    net, plain = tuned(make, VisualPrompts(3)), make().double().eval()
    plain.load_state_dict(net.state_dict(), strict=False)
    x, prefix = plain.embed(IMAGES.double())
    rope = plain.rope.get_embed(shape=[4, 6])
    sin, cos = rope[:3].chunk(2, dim=-1)
    rope = torch.cat([torch.cat([0 * sin, 0 * cos + 1], dim=-1), rope])  # the prompts' first
    tokens = torch.cat([prefix, x.flatten(1, 2)], dim=1)
    for index in range(net.depth):
        parts = [tokens[:, : prefix.shape[1]], net.prompts[index].expand(2, -1, -1)]
        sequence = torch.cat([*parts, tokens[:, prefix.shape[1] :]], dim=1)
        output = plain.blocks[index](sequence, rope=rope)
        tokens = torch.cat([output[:, : prefix.shape[1]], output[:, prefix.shape[1] + 3 :]], dim=1)
    torch.testing.assert_close(run(net).flatten(1, 2), tokens[:, prefix.shape[1] :])


def test_prompts_in_timms_windows_are_those_of_global_attention_if_one_window_covers_all():
    def make(**settings) -> TimmViT:
        return TimmViT("vit_small_patch16_dinov3", **SIZE, **settings)

    net = tuned(make, VisualPrompts(3))
    expected = run(net)
    net.window_size, net.window_block_indexes = 6, (0, 1, 2, 3)
    torch.testing.assert_close(run(net), expected)


def test_the_prompts_start_as_in_vpts_code():
    prompts = ViT(**SIZE, tuning=[VisualPrompts(100)]).prompts.detach()
    bound = math.sqrt(6 / (3 * 16**2 + 32))
    assert prompts.shape == (4, 100, 32)
    assert prompts.abs().max() <= bound
    assert prompts.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("use_injector", [False, True])
def test_freeze_net_of_an_adapter_leaves_the_tuning_trained(use_injector):
    net = ViT(**SIZE, drop_path_rate=0.2, tuning=[LoRA(2), VisualPrompts(3)])
    adapter = ViTAdapter(
        net,
        conv_dim=8,
        deform_num_heads=2,
        norm="BN",
        use_injector=use_injector,
        freeze_net=True,
    ).train()
    assert net.training
    sum(map(torch.sum, adapter(IMAGES).values())).backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == is_added(name), name
    assert all(p.grad is not None for n, p in adapter.named_parameters() if not n.startswith("net"))


def test_optimizer_groups_have_no_frozen_weights_and_the_full_rate():
    net = ViT(**SIZE, tuning=[LoRA(2), VisualPrompts(3), TrainedParts(["bias"])])
    backbone = ViTBaseline(net)
    groups = get_optimizer_params(
        backbone,
        base_lr=1.0,
        weight_decay=0.1,
        no_decay=NoDecayOneDim(),
        lr_factor_func=LayerDecay(0.5, 4),
    )
    names = {id(p): name for name, p in backbone.named_parameters()}
    found = {names[id(p)]: g for g in groups for p in g["params"]}
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert set(found) == trained
    added = [name for name in found if is_added(name)]
    assert len(added) == 4 * 2 * 2 + 1
    for name in added:
        assert (found[name]["lr"], found[name]["weight_decay"]) == (1.0, 0.1), name
    assert found["net.blocks.0.attn.qkv.bias"]["lr"] == 0.5**4
    assert "net.blocks.0.attn.qkv.weight" not in found
    optimizer = torch.optim.AdamW(groups)
    sum(map(torch.sum, backbone(IMAGES).values())).backward()
    optimizer.step()
    assert {names[id(p)] for p in optimizer.state} == trained


def test_pretrained_weights_fill_a_tuned_net_whatever_the_rank():
    torch.manual_seed(0)
    file = timm.create_model("vit_small_patch16_224", img_size=64, **SIZE).state_dict()
    tuning = [LoRA(32, projections=ALL), VisualPrompts(50)]
    backbone = ViTBaseline(ViT(**SIZE, pretrain_img_size=64, tuning=tuning))
    assert sum(p.numel() for p in backbone.net.parameters() if p.requires_grad) > 50_000
    before = copy.deepcopy(backbone.state_dict())
    plan = plan_load(backbone, file, "file.pth")
    check_plan(plan, backbone)
    assert plan.report.net_share == 1.0
    assert not plan.is_doubtful
    plan.apply(backbone)
    assert torch.equal(backbone.net.blocks[1].attn.qkv.weight, file["blocks.1.attn.qkv.weight"])
    assert torch.equal(backbone.net.prompts, before["net.prompts"])
    # As trained, it loads again as a whole; into the plain net it does not.
    again = ViTBaseline(ViT(**SIZE, pretrain_img_size=64, tuning=tuning))
    plan = plan_load(again, backbone.state_dict(), "own.pth")
    check_plan(plan, again, complete=True)
    plan.apply(again)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in backbone.state_dict().items())
    plain = ViTBaseline(ViT(**SIZE, pretrain_img_size=64))
    with pytest.raises(ValueError, match="33 tensors that the net does not have"):
        check_plan(plan_load(plain, backbone.state_dict(), "own.pth"), plain)


def test_parts_of_a_frozen_net():
    net = ViT(**SIZE, tuning=[TrainedParts(["patch_embed", "pos_embed"])])
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"}


@pytest.mark.parametrize("parts", [["bias"], ["norm"], ["attn"]])
def test_parts_may_name_the_final_norm(parts):
    """`ViTAdapter(feature_norm="net")` adds it after the tuning."""
    net = ViT(**SIZE, tuning=[VisualPrompts(2), TrainedParts(parts)])
    net.add_final_norm()
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad == (is_added(name) or parts[0] in name), name


def test_a_net_without_tuning_is_trained_as_a_whole():
    assert all(p.requires_grad for p in ViT(**SIZE).parameters())
    assert ViT(**SIZE).tuning == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(0), "rank must be an integer of at least 1.*got rank=0"),
        (lambda: LoRA(2, alpha=0), "alpha positive.*alpha=0"),
        (lambda: LoRA(2, dropout=1.0), "dropout=1.0"),
        (lambda: LoRA(2, projections=["query"]), "qkv, proj, fc1, fc2, each once, got .'query'"),
        (lambda: LoRA(2, projections=[]), r"got \[\]"),
        (lambda: LoRA(2.5), "rank must be an integer .*got rank=2.5"),
        (lambda: LoRA("16"), "rank must be an integer .*got rank='16'"),
        (lambda: LoRA(True), "rank must be an integer .*got rank=True"),
        (lambda: LoRA(2, alpha=math.inf), "alpha positive and finite.*alpha=inf"),
        (lambda: LoRA(2, alpha="8"), "alpha positive and finite.*alpha='8'"),
        (lambda: LoRA(2, dropout="0"), "dropout in .*dropout='0'"),
        (lambda: LoRA(2, projections="qkv"), "projections must be a list .*got 'qkv'"),
        (lambda: LoRA(2, projections=None), "projections must be a list .*got None"),
        (lambda: LoRA(2, projections=["qkv", "qkv"]), "each once, got .'qkv', 'qkv'"),
        (lambda: VisualPrompts(0), "num_prompts must be an integer of at least 1, got 0"),
        (lambda: VisualPrompts(2.5), "num_prompts must be an integer of at least 1, got 2.5"),
        (lambda: VisualPrompts("5"), "num_prompts must be an integer of at least 1, got '5'"),
        (lambda: TrainedParts([]), r"got \[\]"),
        (lambda: TrainedParts([1]), r"substrings must be a list of parts of names, got \[1\]"),
        (lambda: TrainedParts({"bias": 1}), "substrings must be a list .*got {'bias': 1}"),
        (lambda: TrainedParts("bias"), "got 'bias'"),
        (lambda: ViT(**SIZE, tuning=[TrainedParts(["rope"])]), "ViT's parameters.*'rope'"),
        (lambda: ViT(**SIZE, tuning=[LoRA(2), LoRA(3)]), "'qkv', but have none"),
        (lambda: ViT(**SIZE, tuning=[VisualPrompts(2)] * 2), "without prompts"),
        (lambda: tune(nn.Linear(2, 2), [LoRA(2)]), "blocks of Linear.*'qkv', but have none"),
        (lambda: tune(nn.Linear(2, 2), [VisualPrompts(2)]), "Linear is not"),
        (lambda: tune(ViT(**SIZE, tuning=[LoRA(2)]), [LoRA(2)]), "tuned already"),
        # timm reads the weight of this net's joint projection without calling the layer.
        (
            lambda: TimmViT("vit_base_patch16_xp_224", **SIZE, tuning=[LoRA(2)]),
            "TimmViT must have .*, but have none",
        ),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("tuning", [LoRA(2), [16], "lora", "", None])
def test_a_tuning_is_a_list(tuning):
    with pytest.raises(TypeError, match="tuning must be a list of LoRA"):
        ViT(**SIZE, tuning=tuning)
