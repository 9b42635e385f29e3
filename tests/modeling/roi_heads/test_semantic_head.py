import pytest
import torch
from cascade_samples import build_semantic_head
from detectron2.layers import ShapeSpec

from vitadapter.modeling.roi_heads import HTCMaskHead


def test_all_levels_take_the_size_of_one() -> None:
    names = ["a", "b", "c"]
    head = build_semantic_head(8, in_features=names, fusion_level=1, conv_dim=6, num_classes=5)
    features = {n: torch.randn(2, 8, 16 // 2**i, 24 // 2**i) for i, n in enumerate(names)}
    logits, embedding = head(features)
    assert logits.shape == (2, 5, 8, 12)
    assert embedding.shape == (2, 6, 8, 12)
    for level in names:
        changed = features | {level: features[level] + 1}
        assert not torch.allclose(head(changed)[0], logits)


def test_without_convolutions_and_with_norm() -> None:
    head = build_semantic_head(
        32, in_features=["a"], fusion_level=0, num_convs=0, conv_dim=64, norm="GN"
    )
    assert head.lateral_convs[0].bias is None
    logits, embedding = head({"a": torch.randn(1, 32, 4, 4)})
    assert logits.shape == (1, 183, 4, 4)
    assert embedding.shape == (1, 64, 4, 4)


def test_ignored_pixels_count_as_zero() -> None:
    head = build_semantic_head(8, num_classes=3, loss_weight=0.5, ignore_value=7)
    logits = torch.zeros(1, 3, 2, 2)
    labels = torch.tensor([[[0, 7], [7, 2]]])
    loss = head.loss(logits, labels)
    assert loss.item() == pytest.approx(0.5 * 2 / 4 * torch.tensor(3.0).log().item())
    assert head.loss(logits, torch.full((1, 2, 2), 7)).item() == 0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fusion_level must be in 0\.\.2, got 3"):
        build_semantic_head(8, in_features=["a", "b", "c"], fusion_level=3)
    head = build_semantic_head(8, num_classes=3)
    with pytest.raises(ValueError, match=r"logits \(2, 3, 4, 4\), got \(2, 1, 4, 4\)"):
        head.loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))


def test_mask_head_passes_its_features_on() -> None:
    shape = ShapeSpec(channels=6)
    first = HTCMaskHead(shape, num_classes=3, conv_dims=[4, 5, 7], takes_previous=False)
    second = HTCMaskHead(shape, num_classes=3, conv_dims=[4, 5, 7])
    assert first.conv_res is None
    x = torch.randn(2, 6, 14, 14)
    features = first.features(x)
    assert features.shape == (2, 5, 14, 14)
    assert second.predict(second.features(x, features)).shape == (2, 3, 28, 28)
    assert not torch.allclose(second.features(x, features), second.features(x))
    torch.testing.assert_close(second.layers(x), second.predict(second.features(x)))


def test_mask_head_needs_a_convolution() -> None:
    with pytest.raises(ValueError, match=r"got \[4\]"):
        HTCMaskHead(ShapeSpec(channels=6), num_classes=3, conv_dims=[4])
