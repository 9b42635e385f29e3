from collections.abc import Sequence

import pytest
import torch
from timm.models.beit import Beit
from torch import Tensor, nn

from vitadapter.checkpoint import convert_beit, resize_relative_position_bias_table
from vitadapter.modeling.backbone import BEiT, SimpleFeaturePyramid, ViTAdapter, ViTBaseline

DIM, DEPTH, HEADS = 32, 4, 2
Size = tuple[int, int]


def _randomise(model: nn.Module) -> None:
    """Weights with which every part shows in the output."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        # fan in of the weights, so that the tokens keep their scale
        scale = 0.5 if parameter.ndim == 1 or "table" in name else parameter[0].numel() ** -0.5
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(scale * noise)


def _net(img_size: int | Size = 64, **settings: object) -> BEiT:
    net = BEiT(img_size, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, **settings).eval()
    _randomise(net)
    return net


def _tokens(net: BEiT, images: Tensor) -> Tensor:
    """Class token and tokens (B, 1 + h * w, C) of the last block."""
    x, prefix = net.forward_blocks(*net.embed(images), 0, net.depth)
    return torch.cat([prefix, x.flatten(1, 2)], dim=1)


def _timm(img_size: int | Size, patch_size: int = 16) -> Beit:
    model = Beit(
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=0,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        global_pool="avg",
    )
    _randomise(model)
    return model.eval()


@pytest.mark.parametrize("img_size", [64, (48, 96), (16, 64)])
def test_tokens_are_timms(img_size: int | Size) -> None:
    theirs = _timm(img_size)
    net = _net(img_size, use_cls_token=True)
    net.load_state_dict(convert_beit(theirs.state_dict()).tensors)
    images = torch.randn(2, 3, *((img_size, img_size) if isinstance(img_size, int) else img_size))
    with torch.no_grad():
        expected = theirs.forward_features(images)
        torch.testing.assert_close(_tokens(net, images), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


def test_gradients_are_timms() -> None:
    theirs = _timm(64).double()
    net = _net(64, use_cls_token=True).double()
    net.load_state_dict(convert_beit(theirs.state_dict()).tensors)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    weight = torch.randn(1, 17, DIM, dtype=torch.float64)
    (theirs.forward_features(images) * weight).sum().backward()
    (_tokens(net, images) * weight).sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-9)


def test_a_smaller_image_keeps_the_biases_of_its_offsets() -> None:
    """As timm's model of that size with the middle of each table."""
    net = _net(80, use_cls_token=True)
    theirs = _timm((48, 64))
    state = dict(theirs.state_dict())
    for name, tensor in net.state_dict().items():
        if "table" in name:
            middle = tensor[:-3].view(9, 9, HEADS)[2:7, 1:8].flatten(0, 1)
            tensor = torch.cat([middle, tensor[-3:]])
        state[name] = tensor
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        expected = theirs.forward_features(images)
        torch.testing.assert_close(_tokens(net, images), expected, rtol=0, atol=1e-5)


def test_a_larger_image_takes_the_tables_that_fine_tuning_would_start_from() -> None:
    net = _net(64, use_cls_token=True)
    larger = _net(112, use_cls_token=True)
    state = net.state_dict()
    for name, tensor in net.state_dict().items():
        if "table" in name:
            state[name] = resize_relative_position_bias_table(tensor, 13**2 + 3)
    larger.load_state_dict(state)
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(_tokens(net, images), _tokens(larger, images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(96, 96), (32, 112), (16, 16)])
@pytest.mark.parametrize("use_cls_token", [True, False])
def test_any_size_with_global_attention(size: Size, use_cls_token: bool) -> None:
    net = _net(64, use_cls_token=use_cls_token)
    images = torch.randn(2, 3, *size)
    x, prefix = net.forward_blocks(*net.embed(images), 0, net.depth)
    assert x.shape == (2, size[0] // 16, size[1] // 16, DIM)
    assert prefix.shape == (2, 1 if use_cls_token else 0, DIM)
    # Images of a batch do not see each other.
    torch.testing.assert_close(net(images[1:])["last_feat"], net(images)["last_feat"][1:])


def test_a_map_smaller_than_the_windows_of_all_blocks_is_one_padded_window() -> None:
    """Padding with zero tokens is what global attention over a padded map does."""
    net = _net(window_size=4, window_block_indexes=[0, 1, 2, 3])
    block = net.blocks[0]
    tokens = torch.randn(2, 3, 2, DIM)
    padded = torch.zeros(2, 4, 4, DIM)
    padded[:, :3, :2] = tokens
    window = block.attn(padded.flatten(1, 2), (4, 4)).view(2, 4, 4, DIM)
    found = block.attn(tokens.flatten(1, 2), (3, 2)).view(2, 3, 2, DIM)
    torch.testing.assert_close(found, window[:, :3, :2])


def test_tokens_are_contiguous() -> None:
    assert _net().embed(torch.randn(2, 3, 64, 96))[0].is_contiguous()


def test_windows_do_not_see_each_other() -> None:
    net = _net(window_size=2, window_block_indexes=[0, 1, 2], global_window_size=4)
    images = torch.randn(1, 3, 128, 64)
    other = images.clone()
    other[:, :, 64:] = 0
    assert [block.attn.window_size for block in net.blocks] == [2, 2, 2, 4]
    torch.testing.assert_close(
        net(images)["last_feat"][:, :, :4], net(other)["last_feat"][:, :, :4]
    )
    changed = net(images)["last_feat"][:, :, 4:] - net(other)["last_feat"][:, :, 4:]
    assert changed.abs().max() > 0.1


def test_one_window_size_for_each_block() -> None:
    net = _net(window_size=[2, 3], window_block_indexes=[2, 0], global_window_size=5)
    rows = [block.attn.relative_position_bias_table.shape[0] for block in net.blocks]
    assert rows == [5**2, 9**2, 3**2, 9**2]


def test_blocks_run_in_parts_and_recomputed() -> None:
    net = _net(64, use_cls_token=True).double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    expected = _tokens(net, images)
    net.use_act_checkpoint = True
    x, prefix = net.embed(images)
    for start, stop in ((0, 1), (1, 1), (1, 4)):
        x, prefix = net.forward_blocks(x, prefix, start, stop)
    found = torch.cat([prefix, x.flatten(1, 2)], dim=1)
    torch.testing.assert_close(found, expected)
    parameters = dict(net.named_parameters())
    grads = [
        torch.autograd.grad(out.square().sum(), list(parameters.values()))
        for out in (found, expected)
    ]
    for recomputed, kept in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, kept)


def test_drop_path_grows_with_depth_and_layer_scale_can_be_off() -> None:
    net = BEiT(64, embed_dim=DIM, depth=4, num_heads=2, drop_path_rate=0.3, layer_scale_init=None)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in net.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert not any("gamma" in name for name in net.state_dict())
    torch.manual_seed(0)  # all branches might be kept twice
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(net.eval()(images), net(images))
    assert not torch.equal(net.train()(images)["last_feat"], net(images)["last_feat"])


def test_residual_branches_start_as_in_beit() -> None:
    net = BEiT(64, embed_dim=64, depth=8, num_heads=2)
    last = net.blocks[-1]
    assert last.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert last.attn.proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert last.mlp.fc2.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    torch.testing.assert_close(last.gamma_1.data, torch.full((64,), 1e-6))


@pytest.mark.parametrize("form", ["windows", "cls_token"])
@pytest.mark.parametrize("wrap", [ViTAdapter, ViTBaseline])
def test_trains_below_the_wrappers(form: str, wrap: type[nn.Module]) -> None:
    net = _net(
        use_cls_token=form == "cls_token",
        window_size=2 if form == "windows" else 0,
        window_block_indexes=[0, 2] if form == "windows" else [],
        global_window_size=3 if form == "windows" else 0,
    )
    settings = dict(norm="GN", deform_num_heads=4) if wrap is ViTAdapter else {}
    model = wrap(net, **settings)
    outputs = model(torch.randn(2, 3, 70, 100))
    assert outputs["res4"].shape == (2, DIM, 6, 8)
    sum(output.square().mean() for output in outputs.values()).backward()
    # Without loss on the class token its last value is not needed, but its first is.
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.blocks[0].parameters())
    if form == "cls_token":
        assert net.cls_token.grad.abs().max() > 0


def test_below_the_simple_feature_pyramid() -> None:
    net = _net(window_size=2, window_block_indexes=[0, 1], global_window_size=4)
    pyramid = SimpleFeaturePyramid(net, "last_feat", 8, scale_factors=(2.0, 1.0))
    outputs = pyramid(torch.randn(1, 3, 64, 96))
    assert outputs["p4"].shape == (1, 8, 4, 6)


@pytest.mark.parametrize("size", [64, 48])
def test_mixed_precision_keeps_its_type(size: int) -> None:
    net = _net(64, use_cls_token=True)
    images = torch.randn(1, 3, size, size)
    expected = net(images)["last_feat"]
    with torch.autocast("cpu", torch.bfloat16):
        qkv = []
        net.blocks[0].attn.proj.register_forward_hook(lambda _, x, y: qkv.append(x[0].dtype))
        found = net(images)["last_feat"]
    assert qkv == [torch.bfloat16]
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_heads=3), r"num_heads must divide embed_dim=32, got num_heads=3"),
        (dict(num_heads=0), r"num_heads must divide"),
        (dict(depth=0), r"depth.*must be positive, got \{'depth': 0\}"),
        (dict(drop_path_rate=1.0), r"drop_path_rate must lie in \[0, 1\), got 1.0"),
        (dict(mlp_ratio=0.0), r"mlp_ratio must be positive, got \{'mlp_ratio': 0.0\}"),
        (dict(img_size=72), r"img_size must be a multiple of patch_size=16, got 72"),
        (dict(img_size=(64, 0)), r"img_size must be a multiple"),
        (dict(window_block_indexes=[0]), r"window_size must be at least 1 token"),
        (dict(window_size=2, window_block_indexes=[4]), r"window_block_indexes.*0\.\.3.*\[4\]"),
        (dict(window_size=2, window_block_indexes=[1, 1]), r"distinct.*got \[1, 1\]"),
        (dict(window_size=[2, 2], window_block_indexes=[1]), r"one for each block.*\[2, 2\]"),
        (dict(global_window_size=-1), r"global_window_size at least 0.*-1"),
        (dict(use_cls_token=True, global_window_size=4), r"use_cls_token needs global attention"),
        (
            dict(use_cls_token=True, window_size=2, window_block_indexes=[0]),
            r"use_cls_token needs global attention.*window_size=2 for blocks \[0\]",
        ),
    ],
)
def test_bad_arguments(settings: dict[str, int | float | Sequence[int]], message: str) -> None:
    arguments = dict(embed_dim=DIM, depth=DEPTH, num_heads=HEADS) | settings
    with pytest.raises(ValueError, match=message):
        BEiT(**arguments)
