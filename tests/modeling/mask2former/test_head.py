"""Pixel decoder and transformer decoder beyond the golden file."""

import pytest
import torch
from mask2former_samples import CLASSES, SHAPES, make_head
from torch import Tensor

from vitadapter.modeling.mask2former import (
    Mask2FormerHead,
    MaskedTransformerDecoder,
    MSDeformAttnPixelDecoder,
)


def features_of(height: int, width: int, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(
            batch, 8, height // shape.stride, width // shape.stride, generator=generator
        )
        for name, shape in SHAPES.items()
    }


@torch.no_grad()
def test_inference_returns_the_last_of_the_trained_predictions() -> None:
    torch.manual_seed(0)
    head = make_head(num_queries=6)
    trained = head.train()(features_of(64, 96))
    assert len(trained) == 5
    (final,) = head.eval()(features_of(64, 96))
    assert final.class_logits.shape == (2, 6, CLASSES + 1)
    assert final.mask_logits.shape == (2, 6, 16, 24)
    assert torch.equal(final.mask_logits, trained[-1].mask_logits)
    assert torch.equal(final.class_logits, trained[-1].class_logits)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    head = make_head().eval()
    features = features_of(96, 64, batch=3)
    (together,) = head(features)
    for i in range(3):
        (alone,) = head({name: x[i : i + 1] for name, x in features.items()})
        torch.testing.assert_close(alone.mask_logits[0], together.mask_logits[i])
        torch.testing.assert_close(alone.class_logits[0], together.class_logits[i])


@torch.no_grad()
def test_features_may_come_in_any_order() -> None:
    torch.manual_seed(0)
    head = make_head().eval()
    torch.manual_seed(0)
    reversed_shapes = dict(reversed(SHAPES.items()))
    pixel_decoder = MSDeformAttnPixelDecoder(
        reversed_shapes, num_layers=2, embed_dim=32, mask_dim=16, num_heads=2, ffn_dim=16
    ).eval()
    features = features_of(64, 96)
    expected = head.pixel_decoder(features)
    output = pixel_decoder(features)
    torch.testing.assert_close(output.mask_features, expected.mask_features)
    assert [x.shape[-2:] for x in output.memories] == [(2, 3), (4, 6), (8, 12)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_levels": 4}, r"num_levels < number of features .* got num_levels=4"),
        ({"num_levels": 0}, "0 < num_levels"),
        ({"embed_dim": 30}, "embed_dim must be a positive multiple of 4, got 30"),
    ],
)
def test_arguments_of_the_pixel_decoder(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MSDeformAttnPixelDecoder(SHAPES, **arguments)


@pytest.mark.parametrize("name", ["num_classes", "num_queries", "num_layers"])
def test_arguments_of_the_transformer_decoder(name: str) -> None:
    with pytest.raises(ValueError, match=f"must be at least 1, got .*'{name}': 0"):
        MaskedTransformerDecoder(**({"num_classes": 3} | {name: 0}))


@pytest.mark.parametrize("name", ["embed_dim", "mask_dim", "num_levels"])
def test_parts_that_do_not_fit(name: str) -> None:
    sizes = dict(embed_dim=32, mask_dim=16, num_levels=2)
    other = {"embed_dim": 64, "mask_dim": 32, "num_levels": 3}[name]
    decoder = MaskedTransformerDecoder(num_classes=3, **(sizes | {name: other}))
    with pytest.raises(ValueError, match=rf"same {name}, got \({sizes[name]}, {other}\)"):
        Mask2FormerHead(MSDeformAttnPixelDecoder(SHAPES, **sizes), decoder)
