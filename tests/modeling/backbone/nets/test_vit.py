import copy

import pytest
import torch
from detectron2.modeling import ViT as Detectron2ViT

from vitadapter.modeling.backbone import ViT

SMALL = dict(img_size=96, embed_dim=24, depth=4, num_heads=3, pretrain_img_size=64)


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """No parameter left at a value that could hide a mistake (zero biases, unit norms)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.mark.parametrize("use_rel_pos", [False, True])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("size", [(96, 96), (80, 112)])
def test_equals_detectron2(use_rel_pos, qkv_bias, size):
    settings = SMALL | dict(
        use_rel_pos=use_rel_pos,
        qkv_bias=qkv_bias,
        window_size=4,
        window_block_indexes=[0, 2],
        residual_block_indexes=[1],
    )
    if size != (96, 96) and use_rel_pos:
        settings["window_block_indexes"] = [0, 1, 2, 3]  # global tables fit one size only
    theirs = randomised(Detectron2ViT(**settings)).double().eval()
    ours = ViT(**settings).double().eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected, found = theirs(images), ours(images)
    assert list(found) == list(expected) == ["last_feat"]
    torch.testing.assert_close(found["last_feat"], expected["last_feat"], rtol=0, atol=1e-9)
    assert ours.output_shape() == theirs.output_shape()


@pytest.mark.parametrize("use_abs_pos", [True, False])
def test_tokens_are_contiguous(use_abs_pos):
    """Otherwise, the residual stream would have the layout of maps, and each norm would copy it."""
    net = ViT(**SMALL, use_abs_pos=use_abs_pos)
    x, prefix = net.embed(torch.randn(2, 3, 80, 112))
    assert x.is_contiguous()
    assert net.forward_blocks(x, prefix, 0, 2)[0].is_contiguous()


def test_is_initialised_like_detectron2():
    torch.manual_seed(0)
    settings = dict(depth=2, embed_dim=192, num_heads=3)
    theirs, ours = Detectron2ViT(**settings), ViT(**settings)
    for name, expected in theirs.state_dict().items():
        found = ours.state_dict()[name]
        assert abs(found.mean() - expected.mean()) < 5e-3, name
        assert abs(found.std() - expected.std()) < 5e-3, name


def test_one_window_size_for_each_block():
    """As Detectron2's ViT with one size for all, block by block."""
    sizes = {2: 4, 0: 3}
    settings = SMALL | dict(window_block_indexes=list(sizes))
    ours = randomised(ViT(**settings | dict(window_size=list(sizes.values())))).double().eval()
    x, prefix = ours.embed(torch.randn(1, 3, 80, 112, dtype=torch.float64))
    for index in range(ours.depth):
        theirs = Detectron2ViT(**settings | dict(window_size=sizes.get(index, 1))).double().eval()
        theirs.load_state_dict(ours.state_dict())
        found, _ = ours.forward_blocks(x, prefix, index, index + 1)
        torch.testing.assert_close(found, theirs.blocks[index](x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("pad_after_qkv", [False, True])
def test_padding_matters_only_in_incomplete_windows(pad_after_qkv):
    net = randomised(ViT(**SMALL | dict(depth=1, window_size=4, window_block_indexes=[0]))).eval()
    padded = copy.deepcopy(net)
    padded.blocks[0].attn.pad_after_qkv = pad_after_qkv
    x, prefix = net.embed(torch.randn(1, 3, 96, 96))  # 6 x 6 tokens: windows of 4 do not fit
    expected, _ = net.forward_blocks(x, prefix, 0, 1)
    found, _ = padded.forward_blocks(x, prefix, 0, 1)
    torch.testing.assert_close(found[:, :4, :4], expected[:, :4, :4])
    differs = (found[:, 4:] - expected[:, 4:]).abs().max() > 1e-3
    assert bool(differs) == pad_after_qkv


def test_zero_padding_after_qkv_against_a_plain_softmax():
    """Padded keys have logit 0 and value 0: they only enlarge the softmax denominator."""
    net = randomised(
        ViT(**SMALL | dict(depth=1, window_size=4, window_block_indexes=[0]), pad_after_qkv=True)
    ).eval()
    attn = net.blocks[0].attn
    x = torch.randn(1, 6, 24)  # of 3 x 2 tokens
    q, k, v = attn.qkv(x).view(1, 6, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
    logits = (q @ k.transpose(-1, -2) / 8**0.5).exp()
    weights = logits / (logits.sum(-1, keepdim=True) + 10)  # 16 - 6 padded keys
    expected = attn.proj((weights @ v).transpose(1, 2).reshape(1, 6, 24))
    torch.testing.assert_close(attn(x, (3, 2)), expected)


def test_net_contract():
    net = randomised(ViT(**SMALL)).eval()
    assert (net.embed_dim, net.depth, net.patch_size) == (24, 4, 16)
    images = torch.randn(2, 3, 64, 96)
    x, prefix = net.embed(images)
    assert x.shape == (2, 4, 6, 24)
    assert prefix.shape == (2, 0, 24)
    for start, stop in ((0, 1), (1, 1), (1, 4)):
        x, prefix = net.forward_blocks(x, prefix, start, stop)
    torch.testing.assert_close(x.permute(0, 3, 1, 2), net(images)["last_feat"])


def test_activation_checkpointing_changes_nothing_but_memory():
    net = randomised(ViT(**SMALL, layer_scale_init=1.0)).train()
    checkpointed = copy.deepcopy(net)
    checkpointed.use_act_checkpoint = True
    images = torch.randn(1, 3, 64, 64)
    saved: dict[bool, int] = {}
    for model in (net, checkpointed):
        stored = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: stored.append(t.numel()) or t,  # noqa: B023
            lambda t: t,
        ):
            loss = model(images)["last_feat"].square().sum()
        loss.backward()
        saved[model.use_act_checkpoint] = sum(stored)
    assert saved[True] < 0.5 * saved[False]
    for expected, found in zip(net.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        net = ViT(embed_dim=1024, depth=24, num_heads=16)
    assert net.blocks[23].mlp.fc1.weight.is_meta


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(window_block_indexes=[4], window_size=4), r"window_block_indexes.*0\.\.3.*\[4\]"),
        (dict(window_block_indexes=[0, 0], window_size=4), r"distinct.*got \[0, 0\]"),
        (dict(window_block_indexes=[0]), "window_size"),
        (dict(residual_block_indexes=[-1]), "residual_block_indexes"),
        (dict(num_heads=5), "num_heads must divide embed_dim=24, got num_heads=5"),
        (dict(depth=0), "must be positive"),
        (dict(mlp_ratio=0), "must be positive"),
        (dict(mlp_ratio=float("nan")), "must be positive"),
        (dict(pretrain_img_size=15), "pretrain_img_size must be at least patch_size=16, got 15"),
        (dict(drop_path_rate=-0.1), r"\[0, 1\), got -0.1"),
        (dict(window_size=-1), r"window_size must be at least 1.*got -1"),
        (dict(window_size=[4, 0, 4, 0], window_block_indexes=[0, 2]), r"got \[4, 0, 4, 0\]"),
        (dict(window_size=[4, 0], window_block_indexes=[0, 2]), r"at least 1 token.*got \[4, 0\]"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        ViT(**SMALL | wrong)
