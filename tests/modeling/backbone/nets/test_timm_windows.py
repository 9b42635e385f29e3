"""Windows in timm's blocks: against the global form, a masked form, and by locality."""

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from vitadapter.modeling.backbone import TimmViT
from vitadapter.modeling.backbone.nets.timm_windows import run_block_in_windows

SMALL = dict(depth=2, embed_dim=48, num_heads=4)
MODELS = [
    "vit_small_patch16_dinov3_qkvb",
    "vit_small_plus_patch16_dinov3",
    "vit_7b_patch16_dinov3",
    "eva02_small_patch14_224",
    "eva02_base_patch14_224",
    "beit3_base_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_256",
    "deit3_small_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_clip_224",
    "vit_small_patch16_rope_mixed_224",
]


def make_net(name: str, **settings) -> TimmViT:
    net = TimmViT(name, **SMALL | settings).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net


def run(net: TimmViT, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return net.forward_blocks(*net.embed(images), 0, net.depth)


@pytest.mark.parametrize("name", MODELS)
def test_a_window_over_the_whole_grid_is_global_attention(name):
    net = make_net(name).double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)  # 4 x 6 tokens
    expected = run(net, images)
    net.window_block_indexes = (0, 1)
    for window_size in (6, 7, 100):
        net.window_size = window_size
        for found, wanted in zip(run(net, images), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    net.window_size = 5
    assert (run(net, images)[0] - expected[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_equals_global_attention_under_a_mask(name):
    """Patch tokens see their window and the prefix; nothing else changes, rotary places included.

    One block: after it prefix tokens are a mean over windows, which a mask cannot express.
    """
    net = make_net(name, depth=1, window_size=4, window_block_indexes=[0]).double()
    images = torch.randn(2, 3, 112, 160, dtype=torch.float64)  # 7 x 10 tokens
    x, prefix = net.embed(images)
    found, _ = net.forward_blocks(x, prefix, 0, 1)

    num_prefix = prefix.shape[1]
    row, column = torch.meshgrid(torch.arange(7), torch.arange(10), indexing="ij")
    window = (row // 4 * 3 + column // 4).flatten()
    mask = torch.ones(num_prefix + 70, num_prefix + 70, dtype=torch.bool)
    mask[num_prefix:, num_prefix:] = window[:, None] == window[None]
    rope = {}
    if net.rope is not None:
        embed = net.rope.get_embed(shape=(7, 10))
        rope = {"rope": embed[0] if embed.dim() == 4 else embed}
    tokens = torch.cat([prefix, x.flatten(1, 2)], dim=1)
    expected = net.blocks[0](tokens, attn_mask=mask, **rope)[:, num_prefix:]
    torch.testing.assert_close(found.flatten(1, 2), expected, rtol=1e-10, atol=1e-10)


def test_windows_are_independent_without_prefix_tokens():
    net = make_net("vit_base_patch16_siglip_256", window_size=4, window_block_indexes=[0, 1])
    images = torch.randn(1, 3, 112, 112)  # 7 x 7 tokens: windows of 4 and 3
    before, _ = run(net, images)
    images[0, :, 5 * 16 + 3, 2 * 16 + 9] += 1.0  # in the lower left window
    changed = (run(net, images)[0] - before).abs().amax(dim=(0, 3)) > 0
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[4:, :4] = True
    torch.testing.assert_close(changed, expected)


def test_prefix_tokens_carry_information_between_windows():
    net = make_net("vit_small_patch16_dinov3", window_size=4, window_block_indexes=[0, 1])
    images = torch.randn(1, 3, 128, 128)
    x, prefix = net.embed(images)
    images[0, :, :16, :16] += 1.0
    changed_x, changed_prefix = net.embed(images)
    first = [net.forward_blocks(a, p, 0, 1) for a, p in ((x, prefix), (changed_x, changed_prefix))]
    difference = (first[0][0] - first[1][0]).abs().amax(dim=(0, 3)) > 0
    assert not difference[4:].any()
    assert not difference[:, 4:].any()
    assert (first[0][1] - first[1][1]).abs().max() > 0
    second = [net.forward_blocks(*state, 1, 2)[0] for state in first]
    assert ((second[0] - second[1]).abs().amax(dim=(0, 3)) > 0).all()


def test_a_prefix_token_takes_the_mean_over_windows_weighted_by_their_tokens():
    torch.manual_seed(0)
    block = Block(16, 2, qkv_bias=True).double()
    tokens = torch.randn(1, 2 + 6, 16, dtype=torch.float64)  # 2 prefix tokens, 1 x 6 patches
    attended = []
    for part, share in ((slice(2, 6), 4 / 6), (slice(6, 8), 2 / 6)):
        normed = block.norm1(torch.cat([tokens[:, :2], tokens[:, part]], dim=1))
        attended.append(share * block.attn(normed)[:, :2])
    prefix = tokens[:, :2] + sum(attended)
    expected = prefix + block.mlp(block.norm2(prefix))
    found = run_block_in_windows(block, tokens, (1, 6), 4)[:, :2]
    torch.testing.assert_close(found, expected)


def test_stochastic_depth_drops_whole_images():
    net = make_net("vit_base_patch16_siglip_256", window_size=2, window_block_indexes=[0, 1])
    block = net.blocks[1]
    block.drop_path1 = nn.Dropout1d(0.5)  # drops rows of (B, N, C) in training
    seen = []
    block.drop_path1.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    run(net, torch.randn(3, 3, 64, 96))
    assert seen == [(3, 24, 48)]


def test_post_norm_blocks_attend_globally_only():
    with pytest.raises(ValueError, match=r"must be empty.*EvaBlockPostNorm"):
        TimmViT("eva02_enormous_patch14_clip_224", window_size=4, window_block_indexes=[0])


def test_gradients_reach_every_token_of_incomplete_windows():
    net = make_net("eva02_base_patch14_224", window_size=4, window_block_indexes=[0, 1])
    images = torch.randn(1, 3, 80, 112, requires_grad=True)
    run(net, images)[0].square().mean().backward()
    patches = images.grad.abs().amax(dim=(0, 1)).unfold(0, 16, 16).unfold(1, 16, 16)
    assert (patches.amax(dim=(2, 3)) > 0).all()
