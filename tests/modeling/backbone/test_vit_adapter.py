import copy

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import FPN, Backbone
from detectron2.structures import ImageList
from torch import nn

from vitadapter.modeling.backbone import UniPerceiver, ViT, ViTAdapter
from vitadapter.ops import MSDeformAttn


def make_net(**settings) -> ViT:
    return ViT(
        **dict(embed_dim=32, depth=4, num_heads=2, window_size=2, window_block_indexes=[0, 2])
        | settings
    )


def make_adapter(net: ViT | None = None, **settings) -> ViTAdapter:
    torch.manual_seed(0)
    defaults = dict(conv_dim=8, deform_num_heads=2, norm="BN")
    adapter = ViTAdapter(net or make_net(), **defaults | settings)
    for module in adapter.modules():  # the initial zeros would hide the attention
        if isinstance(module, MSDeformAttn):
            nn.init.normal_(module.sampling_offsets.weight, std=0.02)
            nn.init.normal_(module.attention_weights.weight, std=0.1)
    return adapter


def test_outputs_and_shapes():
    adapter = make_adapter().eval()
    assert isinstance(adapter, Backbone)
    outputs = adapter(torch.randn(2, 3, 64, 96))
    for name, spec in adapter.output_shape().items():
        assert outputs[name].shape == (2, 32, 64 // spec.stride, 96 // spec.stride)
        assert spec.channels == 32
    assert list(outputs) == ["res2", "res3", "res4", "res5"]


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (100, 31), (1, 1)])
def test_any_size_is_padded_at_the_bottom_and_at_the_right(size):
    adapter = make_adapter().eval()
    images = torch.randn(1, 3, *size)
    height, width = (-(-side // 32) * 32 for side in size)
    padded = torch.zeros(1, 3, height, width)
    padded[:, :, : size[0], : size[1]] = images
    expected, found = adapter(padded), adapter(images)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_detectron2_pads_batches_for_it():
    fpn = FPN(make_adapter(), ["res2", "res3", "res4", "res5"], 16)
    for backbone in (fpn, fpn.bottom_up):
        images = ImageList.from_tensors(
            [torch.ones(3, 40, 70), torch.ones(3, 65, 33)],
            backbone.size_divisibility,
            padding_constraints=backbone.padding_constraints,
        )
        assert images.tensor.shape == (2, 3, 96, 96)


def test_an_image_alone_and_in_a_batch_agree_in_outputs_and_gradients():
    """One image has ambiguous batch strides, which PyTorch's kernels must not stumble over."""
    adapter = make_adapter().double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    grads = []
    for batches in ([images], [images[:1], images[1:]]):
        adapter.zero_grad()
        outputs = [adapter(batch) for batch in batches]
        merged = {name: torch.cat([out[name] for out in outputs]) for name in outputs[0]}
        torch.manual_seed(1)
        sum((out * torch.randn_like(out)).sum() for out in merged.values()).backward()
        grads.append({n: p.grad.clone() for n, p in adapter.named_parameters()})
    for name, expected in grads[0].items():
        torch.testing.assert_close(grads[1][name], expected, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("norm", ["SyncBN", "BN", "GN", "FrozenBN", "LN", ""])
def test_norms_train_in_one_process(norm):
    settings = dict(embed_dim=64, num_heads=2) if norm == "GN" else {}
    adapter = make_adapter(make_net(**settings), norm=norm, conv_dim=32).train()
    outputs = adapter(torch.randn(2, 3, 64, 64))
    sum(out.square().mean() for out in outputs.values()).backward()
    assert adapter.spm.stem[0].weight.grad.abs().sum() > 0
    assert isinstance(adapter.norm1, FrozenBatchNorm2d) == (norm == "FrozenBN")


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_batch_norm_cannot_train_on_a_single_tiny_image(norm):
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        make_adapter(norm=norm).train()(images)
    make_adapter(norm=norm).train()(images.expand(2, -1, -1, -1))
    make_adapter(make_net(embed_dim=64), norm="GN", conv_dim=32).train()(images)


def test_initial_injector_leaves_the_net_alone():
    """Paper section 3.4: gamma is 0 at first, so that the pre-trained ViT works as it did."""
    net = make_net().eval()
    adapter = make_adapter(net, vit_feature=None).eval()
    images = torch.randn(1, 3, 64, 64)
    seen = {}
    adapter.interactions[-1].extractor.register_forward_pre_hook(
        lambda module, args: seen.update(x=args[1])
    )
    adapter(images)
    expected = net(images)["last_feat"].flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen["x"], expected)


def test_initialisation_leaves_the_weights_of_the_net_alone():
    net = make_net()
    before = copy.deepcopy(net.state_dict())
    adapter = ViTAdapter(net, conv_dim=8, deform_num_heads=2)
    for name, tensor in before.items():
        torch.testing.assert_close(adapter.state_dict()[f"net.{name}"], tensor, rtol=0, atol=0)


def test_initialisation_follows_the_official_code():
    adapter = ViTAdapter(ViT(embed_dim=192, num_heads=3, depth=4), norm="BN")
    assert abs(adapter.level_embed.std() - 1) < 0.1
    assert abs(adapter.interactions[0].extractor.ffn.fc1.weight.std() - 0.02) < 2e-3
    depthwise = adapter.interactions[0].extractor.ffn.dwconv.dwconv
    assert abs(depthwise.weight.std() - (2 / 9) ** 0.5) < 0.05
    assert abs(adapter.up.weight.std() - (2 / (4 * 192)) ** 0.5) < 2e-3
    assert abs(adapter.spm.stem[3].weight.std() - (2 / (9 * 64)) ** 0.5) < 2e-3
    assert adapter.interactions[0].injector.gamma.abs().max() == 0
    assert adapter.interactions[0].injector.attn.sampling_offsets.weight.abs().max() == 0
    assert adapter.interactions[0].injector.attn.sampling_offsets.bias.abs().max() == 4


@pytest.mark.parametrize("use_injector", [True, False])
def test_frozen_net(use_injector):
    adapter = make_adapter(
        make_net(drop_path_rate=0.5),
        freeze_net=True,
        use_injector=use_injector,
        injector_gamma_init=0.1,
    )
    adapter.train()
    assert adapter.spm.training
    assert not adapter.net.training
    net_tensors = []
    hook = torch.autograd.graph.saved_tensors_hooks
    images = torch.randn(2, 3, 64, 64)
    for block in adapter.net.blocks:
        block.register_forward_hook(lambda m, args, out: net_tensors.append(out.requires_grad))
    with hook(lambda t: t, lambda t: t):
        outputs = adapter(images)
    assert all(net_tensors) == use_injector
    assert any(net_tensors) == use_injector
    sum(out.square().mean() for out in outputs.values()).backward()
    assert all(p.grad is None for p in adapter.net.parameters())
    assert all(
        p.grad is not None for n, p in adapter.named_parameters() if not n.startswith("net.")
    )
    assert any("injector" in n for n, _ in adapter.named_parameters()) == use_injector


def test_activation_checkpointing_changes_nothing_but_memory():
    adapter = make_adapter(injector_gamma_init=0.1).train()
    checkpointed = copy.deepcopy(adapter)
    checkpointed.net.use_act_checkpoint = True
    for interaction in checkpointed.interactions:
        interaction.use_act_checkpoint = True
    images = torch.randn(2, 3, 64, 64)
    stored: list[list[int]] = []
    for model in (adapter, checkpointed):
        stored.append([])
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: stored[-1].append(t.numel()) or t, lambda t: t
        ):
            loss = sum(out.square().mean() for out in model(images).values())
        loss.backward()
    assert sum(stored[1]) < 0.7 * sum(stored[0])
    for (name, expected), found in zip(
        adapter.named_parameters(), checkpointed.parameters(), strict=True
    ):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_interactions_can_be_uneven_and_few():
    adapter = make_adapter(interaction_indexes=[[0, 0], [1, 3]]).eval()
    assert len(adapter.interactions) == 2
    assert adapter.interactions[0].extra_extractors is None
    assert len(adapter.interactions[1].extra_extractors) == 2
    adapter(torch.randn(1, 3, 32, 32))


def test_attention_is_replaceable():
    class MeanAttention(nn.Module):
        def __init__(self, embed_dim, num_heads, num_levels, num_points, ratio):
            super().__init__()
            self.proj = nn.Linear(embed_dim, embed_dim, bias=False)
            nn.init.eye_(self.proj.weight)
            self.num_levels = num_levels

        def forward(self, query, reference_points, value, spatial_shapes):
            assert len(spatial_shapes) == self.num_levels
            assert reference_points.shape[1] == query.shape[1]
            return self.proj(value.mean(1, keepdim=True)).expand_as(query)

    adapter = ViTAdapter(make_net(), attention=MeanAttention, norm="BN", conv_dim=8).eval()
    assert adapter(torch.randn(1, 3, 32, 64))["res5"].shape == (1, 32, 1, 2)
    assert not any(isinstance(m, MSDeformAttn) for m in adapter.modules())
    # It has initialised itself, and stays as it is.
    weight = adapter.interactions[0].injector.attn.proj.weight
    torch.testing.assert_close(weight, torch.eye(32))


def test_no_ffn_in_the_light_variant():
    adapter = make_adapter(ffn_ratio=0, num_interactions=1, vit_feature=None).eval()
    assert not any("ffn" in name for name, _ in adapter.named_parameters())
    adapter(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(num_interactions=3), "depth 4.*got 3"),
        (dict(num_interactions=0), "got 0"),
        (dict(interaction_indexes=[[0, 1]]), r"blocks 0\.\.3"),
        (dict(interaction_indexes=[[0, 1], [1, 3]]), "in order"),
        (dict(interaction_indexes=[[0, 1], [2, 4]]), r"blocks 0\.\.3"),
        (dict(interaction_indexes=[[2, 3], [0, 1]]), "in order"),
        (dict(interaction_indexes=[[0, 1, 2, 3]]), "pairs"),
        (dict(vit_feature="last"), "'last'"),
        (dict(ffn_ratio=-0.25), "ffn_ratio=-0.25"),
        (dict(num_extra_extractors=-1), "num_extra_extractors=-1"),
        (dict(drop_path_rate=1.0), "drop_path_rate=1.0"),
        (dict(vit_feature="stage", num_interactions=2), "four interactions.*got 2"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_adapter(**wrong)


@pytest.mark.parametrize("vit_feature", ["final", "stage"])
def test_new_norms_of_the_features(vit_feature):
    """Against the tokens of the net alone, which no injector changes."""
    adapter = make_adapter(vit_feature=vit_feature, feature_norm="LN", use_injector=False)
    for i, norm in enumerate(adapter.feature_norms):
        nn.init.constant_(norm.weight, i + 2.0)
        nn.init.constant_(norm.bias, i - 1.0)
    images = torch.randn(2, 3, 64, 96)
    tokens, stages = adapter.net.embed(images), []
    for block in range(4):
        tokens = adapter.net.forward_blocks(*tokens, block, block + 1)
        stages.append(tokens[0].permute(0, 3, 1, 2))
    weights = [2, 3, 4, 5] if vit_feature == "stage" else [2] * 4
    sources = stages if vit_feature == "stage" else stages[-1:] * 4
    _, found = adapter.forward_maps(images)
    for x, weight, feature in zip(sources, weights, found, strict=True):
        normalised = (x - x.mean(1, True)) / (x.var(1, False, True) + 1e-6).sqrt()
        expected = nn.functional.interpolate(
            normalised * weight + weight - 3,
            size=feature.shape[2:],
            mode="bilinear",
            align_corners=False,
        )
        torch.testing.assert_close(feature, expected)


@pytest.mark.parametrize("freeze_net", [False, True])
def test_the_final_norm_of_the_net_normalises_all_stages(freeze_net):
    adapter = make_adapter(vit_feature="stage", feature_norm="net", freeze_net=freeze_net, norm="")
    assert [name for name, _ in adapter.named_parameters() if "net.norm" in name] == [
        "net.norm.weight",
        "net.norm.bias",
    ]
    assert adapter.feature_norms is None
    nn.init.zeros_(adapter.net.norm.weight)
    nn.init.constant_(adapter.net.norm.bias, 3.0)
    maps, features = adapter.forward_maps(torch.randn(1, 3, 64, 64))
    for feature in features:
        torch.testing.assert_close(feature, torch.full_like(feature, 3.0))
    sum(feature.sum() for feature in (*maps, *features)).backward()
    assert (adapter.net.norm.bias.grad is None) == freeze_net


@pytest.mark.parametrize("feature_norm", ["net", "LN"])
def test_a_norm_of_features_that_are_not_used(feature_norm):
    with pytest.raises(ValueError, match="nothing to normalise"):
        make_adapter(feature_norm=feature_norm, vit_feature=None)


def test_a_net_without_final_norm_is_named():
    net = UniPerceiver(embed_dim=32, depth=4, num_heads=2, pretrain_img_size=32)
    with pytest.raises(ValueError, match="UniPerceiver has no final norm"):
        make_adapter(net, feature_norm="net")


def test_bad_patch_size():
    with pytest.raises(ValueError, match=r"patch_size must be 16.*14"):
        make_adapter(make_net(patch_size=14))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 0, 32)])
def test_bad_images(shape):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        make_adapter()(torch.randn(shape))
