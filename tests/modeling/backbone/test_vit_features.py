import pytest
import torch

from vitadapter.modeling.backbone import ViT, ViTFeatures


def make_net() -> ViT:
    return ViT(embed_dim=32, depth=4, num_heads=2)


def test_features_are_the_outputs_of_the_blocks():
    backbone = ViTFeatures(make_net(), block_indexes=[2, 0]).eval()
    images = torch.randn(2, 3, 64, 96)
    outputs = backbone(images)
    assert list(outputs) == ["block2", "block0"]
    x, prefix = backbone.net.embed(images)
    for stop in (1, 3):
        expected, _ = backbone.net.forward_blocks(x, prefix, 0, stop)
        torch.testing.assert_close(outputs[f"block{stop - 1}"], expected.permute(0, 3, 1, 2))
    for name, spec in backbone.output_shape().items():
        assert (spec.channels, spec.stride) == (32, 16)
        assert outputs[name].shape == (2, 32, 4, 6)


def test_any_size_is_padded():
    backbone = ViTFeatures(make_net(), block_indexes=[3])
    assert backbone(torch.randn(1, 3, 40, 70))["block3"].shape == (1, 32, 4, 6)


@pytest.mark.parametrize("indexes", [[0, 4], [1, 1], [-1]])
def test_wrong_blocks(indexes):
    with pytest.raises(ValueError, match=r"block_indexes must be distinct and lie in 0\.\.3"):
        ViTFeatures(make_net(), block_indexes=indexes)
