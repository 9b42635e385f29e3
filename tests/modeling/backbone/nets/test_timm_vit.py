"""TimmViT against timm's own models, cut down to two blocks and few channels."""

import copy

import pytest
import timm
import torch
from detectron2.modeling import Backbone
from detectron2.modeling import SimpleFeaturePyramid as Detectron2SimpleFeaturePyramid
from torch import nn

from vitadapter.modeling.backbone import TimmViT

SMALL = dict(depth=2, embed_dim=48, num_heads=4)

# Name, side of the pre-training's token grid, prefix tokens.
MODELS = [
    ("vit_small_patch16_dinov3", 16, 5),
    ("vit_small_patch16_dinov3_qkvb", 16, 5),
    ("vit_small_plus_patch16_dinov3", 16, 5),
    ("vit_base_patch16_dinov3", 16, 5),
    ("vit_large_patch16_dinov3_qkvb", 16, 5),
    ("vit_7b_patch16_dinov3", 16, 5),
    ("eva02_small_patch14_224", 16, 1),
    ("eva02_base_patch14_224", 16, 1),
    ("eva02_large_patch14_448", 32, 1),
    ("eva02_base_patch16_clip_224", 14, 1),
    ("beit3_base_patch16_224", 14, 1),
    ("vit_small_patch14_dinov2", 37, 1),
    ("vit_small_patch14_reg4_dinov2", 37, 5),
    ("vit_giant_patch14_reg4_dinov2", 37, 5),
    ("vit_base_patch16_siglip_256", 16, 0),
    ("vit_base_patch16_siglip_gap_512", 32, 0),
    ("deit3_small_patch16_224", 14, 1),
    ("vit_small_patch16_224", 14, 1),
    ("vit_large_patch16_384", 24, 1),
    ("vit_base_patch16_clip_224", 14, 1),
    ("vit_base_patch32_clip_256", 8, 1),
    # Further forms of timm's two classes: per-head rotary positions, post-norm, no class token.
    ("vit_small_patch16_rope_mixed_224", 14, 1),
    ("vit_small_patch16_rope_mixed_ape_224", 14, 1),
    ("vit_pe_core_tiny_patch16_384", 24, 1),
    ("vit_mediumd_patch16_rope_reg1_gap_256", 16, 1),
    ("eva02_enormous_patch14_clip_224", 16, 1),
    ("vit_small_patch16_36x1_224", 14, 1),
]
# One for each way in which a model differs from the next.
VARIED = [
    "vit_small_patch16_dinov3_qkvb",
    "eva02_base_patch14_224",
    "beit3_base_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_256",
    "vit_small_patch16_rope_mixed_224",
    "vit_base_patch16_clip_224",
]


def randomised(model: nn.Module) -> nn.Module:
    """No parameter left at a value that could hide a mistake (zero tokens, tiny layer scales)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def reference(name: str, grid: int) -> nn.Module:
    """timm's model, to the end of the last block."""
    model = timm.create_model(
        name,
        num_classes=0,
        patch_size=16,
        img_size=grid * 16,
        dynamic_img_size=True,
        **SMALL,
    )
    model.norm = nn.Identity()
    return randomised(model).eval()


CASES = [pytest.param(*model, torch.float64, id=f"{model[0]}-float64") for model in MODELS] + [
    pytest.param(*model, torch.float32, id=f"{model[0]}-float32")
    for model in MODELS
    if model[0] in VARIED
]


@pytest.mark.parametrize(("name", "grid", "num_prefix", "dtype"), CASES)
def test_equals_timm(name, grid, num_prefix, dtype):
    theirs = reference(name, grid).to(dtype)
    ours = TimmViT(name, **SMALL).eval().to(dtype)
    state = theirs.state_dict()
    dropped = [key for key in state if key not in ours.state_dict()]
    assert all(key.split(".")[0] in ("norm", "fc_norm", "attn_pool") for key in dropped)
    ours.load_state_dict({key: state[key] for key in state if key not in dropped})
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    for height, width in ((grid * 16, grid * 16), (96, 96), (64, 160)):
        images = torch.randn(2, 3, height, width, dtype=dtype)
        with torch.no_grad():
            expected = theirs.forward_features(images)
            x, prefix = ours.embed(images)
            assert x.shape == (2, height // 16, width // 16, 48)
            assert prefix.shape == (2, num_prefix, 48)
            for start, stop in ((0, 1), (1, 1), (1, 2)):
                x, prefix = ours.forward_blocks(x, prefix, start, stop)
        found = torch.cat([prefix, x.flatten(1, 2)], dim=1)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "embed_dim", "depth"),
    [
        ("vit_7b_patch16_dinov3", 4096, 40),
        ("eva02_large_patch14_448", 1024, 24),
        ("vit_base_patch14_reg4_dinov2", 768, 12),
    ],
)
def test_builds_on_the_meta_device_with_the_sizes_of_the_model(name, embed_dim, depth):
    with torch.device("meta"):
        net = TimmViT(name)
    assert (net.embed_dim, net.depth, net.patch_size) == (embed_dim, depth, 16)
    assert net.patch_embed.proj.weight.shape == (embed_dim, 3, 16, 16)
    assert all(parameter.is_meta for parameter in net.parameters())


def test_the_pretraining_size_sizes_the_position_embedding():
    assert TimmViT("vit_small_patch16_224", **SMALL).pos_embed.shape == (1, 1 + 14 * 14, 48)
    net = TimmViT("vit_small_patch16_224", **SMALL, pretrain_img_size=384)
    assert net.pos_embed.shape == (1, 1 + 24 * 24, 48)
    assert TimmViT("vit_small_patch14_dinov2", **SMALL).pos_embed.shape == (1, 1 + 37 * 37, 48)


@pytest.mark.parametrize("name", VARIED)
def test_every_parameter_gets_a_gradient(name):
    """Parameters without one stop distributed training."""
    windows = dict(window_size=3, window_block_indexes=[0])
    net = randomised(TimmViT(name, **SMALL, drop_path_rate=0.1, **windows)).train()
    images = torch.randn(8, 3, 64, 80)  # with two, drop path might leave a branch out of both
    net(images)["last_feat"].square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_drop_path_is_that_of_timm():
    net = TimmViT("vit_small_patch16_dinov3", **SMALL | dict(depth=3), drop_path_rate=0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in net.blocks]
    torch.testing.assert_close(rates, [0.0, 0.2, 0.4])


@pytest.mark.parametrize("name", VARIED)
def test_activation_checkpointing_changes_nothing_but_memory(name):
    net = randomised(TimmViT(name, **SMALL, window_size=2, window_block_indexes=[1])).train()
    checkpointed = copy.deepcopy(net)
    checkpointed.use_act_checkpoint = True
    images = torch.randn(1, 3, 64, 64)
    stored: list[list[int]] = []
    for model in (net, checkpointed):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        ):
            loss = model(images)["last_feat"].square().mean()
        loss.backward()
        stored.append(sizes)
    assert sum(stored[1]) < 0.5 * sum(stored[0])
    for expected, found in zip(net.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.parametrize("name", VARIED)
def test_runs_in_bfloat16_autocast(name):
    net = randomised(TimmViT(name, **SMALL, window_size=2, window_block_indexes=[1]))
    with torch.no_grad():  # values of order 1, which bfloat16 resolves to some hundredths
        for parameter in net.parameters():
            parameter.mul_(0.3)
    images = torch.randn(1, 3, 64, 96)
    expected = net(images)["last_feat"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net(images)["last_feat"]
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    found.float().square().mean().backward()


def test_is_one_graph_for_the_compiler():
    windows = dict(window_size=3, window_block_indexes=[0])
    net = randomised(TimmViT("eva02_base_patch14_224", **SMALL, **windows)).eval()
    images = torch.randn(1, 3, 64, 96)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images)["last_feat"], net(images)["last_feat"])


def test_is_a_backbone_for_detectron2():
    net = TimmViT("vit_small_patch16_dinov3", **SMALL).eval()
    assert isinstance(net, Backbone)
    pyramid = Detectron2SimpleFeaturePyramid(net, "last_feat", 16, (2.0, 1.0), norm="LN")
    assert pyramid(torch.randn(1, 3, 64, 96))["p3"].shape == (1, 16, 8, 12)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_smal_patch16_dinov3", "has no model.*close to it are.*vit_small_patch16_dinov3"),
        ("no such thing at all", "has no model 'no such thing at all'$"),
        ("vit_small_patch16_dinov3.lvd1689m", "without the tag.*'vit_small_patch16_dinov3.lvd"),
        ("resnet50", "plain ViT.*'resnet50'"),
        ("swin_tiny_patch4_window7_224", "plain ViT.*'swin_tiny_patch4_window7_224'"),
        ("hiera_tiny_224", "plain ViT"),
        ("beit_base_patch16_224", "BEiT has a net of its own.*'beit_base_patch16_224'"),
        ("vit_small_r26_s32_224", "plain ViT.*'vit_small_r26_s32_224'"),
        ("vit_base_patch16_siglip_256 ", "has no model"),
        ("deit_tiny_distilled_patch16_224", "which is a VisionTransformerDistilled"),
    ],
)
def test_names_that_are_no_plain_vit_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        TimmViT(name)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(patch_size=0), r"patch_size.*must be positive, got \{'patch_size': 0\}"),
        (dict(depth=-1), "must be positive"),
        (dict(num_heads=5), "num_heads must divide embed_dim=48.*num_heads=5"),
        (dict(num_heads=8), "multiple of 4 channels, got num_heads=8"),
        (dict(drop_path_rate=1.0), r"\[0, 1\), got 1.0"),
        (dict(pretrain_img_size=100), "multiple of patch_size=16, got 100"),
        (dict(window_block_indexes=[0]), "window_size.*got 0"),
        (dict(window_size=-1), "window_size.*got -1"),
        (dict(window_size=4, window_block_indexes=[2]), r"0\.\.1, got \[2\]"),
        (dict(window_size=4, window_block_indexes=[0, 0]), r"got \[0, 0\]"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        TimmViT("vit_small_patch16_dinov3", **SMALL | wrong)


def test_bad_arguments_are_refused_before_memory_is_spent():
    with pytest.raises(ValueError, match=r"0\.\.39, got \[40\]"):
        TimmViT("vit_7b_patch16_dinov3", window_size=14, window_block_indexes=[40])


@pytest.mark.parametrize("shape", [(1, 3, 64, 65), (1, 3, 60, 64), (1, 3, 0, 64), (3, 64, 64)])
def test_bad_images(shape):
    with pytest.raises(ValueError, match=r"multiples of 16 pixels, got \("):
        TimmViT("vit_small_patch16_dinov3", **SMALL)(torch.randn(shape))


def test_a_timm_that_is_too_old_is_named(monkeypatch):
    create = timm.create_model

    def without_rope_mixed(*args, **kwargs):
        model = create(*args, **kwargs)
        del model.rope_mixed
        return model

    monkeypatch.setattr(timm, "create_model", without_rope_mixed)
    with pytest.raises(ValueError, match=r"timm >= 1.0.20.*rope_mixed"):
        TimmViT("vit_small_patch16_dinov3", **SMALL)
