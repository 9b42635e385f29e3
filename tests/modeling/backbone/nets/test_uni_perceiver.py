import pytest
import torch
from torch import nn

from vitadapter.modeling.backbone import UniPerceiver, ViT, ViTAdapter

DIM, DEPTH, HEADS = 32, 4, 2


def _net(**settings: object) -> UniPerceiver:
    net = UniPerceiver(
        embed_dim=DIM, depth=DEPTH, num_heads=HEADS, layer_scale_init=1.0, **settings
    )
    return net.eval()


def _as_vit(net: UniPerceiver, **settings: object) -> ViT:
    """Detectron2's blocks with the net's weights."""
    vit = ViT(
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        use_abs_pos=False,
        layer_scale_init=1.0,
        **settings,
    )
    renames = [
        ("self_attn.in_proj", "attn.qkv"),
        ("self_attn.out_proj", "attn.proj"),
        ("linear1", "mlp.fc1"),
        ("linear2", "mlp.fc2"),
        ("gamma_", "gamma"),
    ]
    state = {}
    for name, tensor in net.blocks.state_dict().items():
        for old, new in renames:
            name = name.replace(old, new)
        state[name] = tensor
    vit.blocks.load_state_dict(state)
    return vit.eval()


@pytest.mark.parametrize(
    "windows",
    [
        {},
        dict(window_size=3, window_block_indexes=[0, 2]),
        dict(window_size=[2, 3], window_block_indexes=[2, 0]),
    ],
)
def test_blocks_are_those_of_a_plain_vit(windows: dict[str, int | list[int]]) -> None:
    """Padding as Detectron2 pads, checked in `ViT` against Detectron2 itself."""
    net = _net(**windows)
    for name, parameter in net.blocks.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.5 if "norm" not in name else 1.0)
    vit = _as_vit(net, **windows)
    x, prefix = net.embed(torch.randn(2, 3, 64, 80))
    found, _ = net.forward_blocks(x, prefix, 0, DEPTH)
    expected, _ = vit.forward_blocks(x, prefix, 0, DEPTH)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert (found - x).std() > 0.1


def test_embedding() -> None:
    net = _net(pretrain_img_size=64)
    embed = net.visual_embed.patch_embed
    embed.spatial_pos_embed.weight.data.normal_()
    embed.temporal_pos_embed.weight.data.normal_()
    net.visual_embed.embeddings_norm.weight.data.normal_()
    images = torch.randn(2, 3, 64, 64)
    patches = nn.functional.conv2d(images, embed.proj.weight, embed.proj.bias, stride=16)
    tokens = patches.flatten(2).transpose(1, 2)
    tokens = tokens + embed.spatial_pos_embed.weight + embed.temporal_pos_embed.weight[0]
    norm = net.visual_embed.embeddings_norm
    expected = nn.functional.layer_norm(tokens, (DIM,), norm.weight, norm.bias, eps=1e-5)
    x, prefix = net.embed(images)
    torch.testing.assert_close(x.flatten(1, 2), expected)
    assert prefix.shape == (2, 0, DIM)


@pytest.mark.parametrize("size", [(32, 96), (16, 16), (240, 32)])
def test_any_size(size: tuple[int, int]) -> None:
    net = _net(window_size=3, window_block_indexes=[0, 1])
    images = torch.randn(2, 3, *size)
    outputs = net(images)["last_feat"]
    assert outputs.shape == (2, DIM, size[0] // 16, size[1] // 16)
    torch.testing.assert_close(net(images[1:])["last_feat"], outputs[1:], rtol=0, atol=1e-5)


def test_trains_below_the_adapter() -> None:
    torch.manual_seed(0)  # drop path might leave a branch out of every image
    net = _net(use_act_checkpoint=True, drop_path_rate=0.2).train()
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in net.blocks]
    assert rates == pytest.approx([0.0, 0.2 / 3, 0.4 / 3, 0.2])
    model = ViTAdapter(net, norm="GN", deform_num_heads=4)
    outputs = model(torch.randn(2, 3, 70, 100))
    sum(output.square().mean() for output in outputs.values()).backward()
    grads = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads.values())
    frames = grads["visual_embed.patch_embed.temporal_pos_embed.weight"].abs().amax(1)
    assert frames[0] > 0
    assert not frames[1:].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_heads=3), r"num_heads must divide embed_dim=32, got num_heads=3"),
        (dict(depth=0), r"depth.*must be positive, got \{'depth': 0\}"),
        (dict(pretrain_img_size=8), r"pretrain_img_size // patch_size must be positive"),
        (dict(window_block_indexes=[0]), r"window_size must be at least 1 token.*got 0, \[0\]"),
        (dict(window_size=2, window_block_indexes=[-1]), r"window_block_indexes.*got \[-1\]"),
        (dict(patch_size=0), r"must be positive, got \{'patch_size': 0"),
    ],
)
def test_bad_arguments(settings: dict[str, int | list[int]], message: str) -> None:
    arguments = dict(embed_dim=DIM, depth=DEPTH, num_heads=HEADS) | settings
    with pytest.raises(ValueError, match=message):
        UniPerceiver(**arguments)
