import pytest
import torch

from vitadapter.modeling.backbone import BEiT, ViT, ViTBaseline

UP = ("up1.0", "up1.1", "up1.3", "up2")


def make_net() -> ViT:
    return ViT(embed_dim=32, depth=4, num_heads=2)


def test_strides_and_default_blocks():
    baseline = ViTBaseline(make_net()).eval()
    assert baseline.block_indexes == (0, 1, 2, 3)
    outputs = baseline(torch.randn(2, 3, 64, 96))
    for name, spec in baseline.output_shape().items():
        assert outputs[name].shape == (2, 32, 64 // spec.stride, 96 // spec.stride)


def test_one_block_serves_all_levels_and_later_blocks_do_not_run():
    baseline = ViTBaseline(make_net(), block_indexes=[1]).eval()
    calls = []
    for i, block in enumerate(baseline.net.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    baseline(torch.randn(1, 3, 32, 32))
    assert calls == [0, 1]


@pytest.mark.parametrize("indexes", [[0, 1], [0, 1, 2, 4], [3, 2, 1, 0], []])
def test_bad_block_indexes(indexes):
    with pytest.raises(ValueError, match=r"block_indexes.*0\.\.3"):
        ViTBaseline(make_net(), block_indexes=indexes)


def test_any_size_is_padded():
    baseline = ViTBaseline(make_net()).eval()
    images = torch.randn(1, 3, 40, 70)
    padded = torch.zeros(1, 3, 64, 96)
    padded[:, :, :40, :70] = images
    expected, found = baseline(padded), baseline(images)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_the_norms_of_the_official_beit_baseline():
    net = BEiT(64, embed_dim=32, depth=4, num_heads=2, use_cls_token=True)
    baseline = ViTBaseline(net, norm_layer=None, norm="BN").eval()
    names = {name for name, _ in baseline.named_parameters() if not name.startswith("net.")}
    assert names == {f"{part}.{kind}" for part in UP for kind in ("weight", "bias")}
    images = torch.randn(2, 3, 64, 64)
    x, _ = net.forward_blocks(*net.embed(images), 0, 4)
    outputs = baseline(images)
    # No norm between the last block and the pooling.
    expected = torch.nn.functional.max_pool2d(x.permute(0, 3, 1, 2), 2)
    torch.testing.assert_close(outputs["res5"], expected)
    assert isinstance(baseline.up1[1], torch.nn.BatchNorm2d)
