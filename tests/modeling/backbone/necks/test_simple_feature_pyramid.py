import pytest
import torch
from detectron2.modeling import SimpleFeaturePyramid as Detectron2SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import ImageList

from vitadapter.modeling.backbone import SimpleFeaturePyramid, ViT


def make(cls: type, square_pad: int = 0) -> Detectron2SimpleFeaturePyramid:
    return cls(
        net=ViT(embed_dim=32, depth=2, num_heads=2),
        in_feature="last_feat",
        out_channels=16,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        square_pad=square_pad,
    )


def test_equals_detectron2():
    ours, theirs = make(SimpleFeaturePyramid).eval(), make(Detectron2SimpleFeaturePyramid).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 96)
    expected, found = theirs(images), ours(images)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_images_are_padded_to_the_coarsest_stride():
    pyramid = make(SimpleFeaturePyramid)
    images = ImageList.from_tensors(
        [torch.ones(3, 40, 70)],
        pyramid.size_divisibility,
        padding_constraints=pyramid.padding_constraints,
    )
    assert images.tensor.shape == (1, 3, 64, 96)


@pytest.mark.parametrize("square_pad", [128, 120])
def test_padded_to_a_square_as_detectron2_does(square_pad: int) -> None:
    ours = make(SimpleFeaturePyramid, square_pad).eval()
    theirs = make(Detectron2SimpleFeaturePyramid, square_pad).eval()
    ours.load_state_dict(theirs.state_dict())
    images = [torch.randn(3, 40, 70), torch.randn(3, 90, 60)]

    def features(pyramid: Detectron2SimpleFeaturePyramid, divisibility: int) -> dict:
        constraints = pyramid.padding_constraints
        return pyramid(ImageList.from_tensors(images, divisibility, 0.0, constraints).tensor)

    expected, found = features(theirs, 32), features(ours, ours.size_divisibility)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_larger_images_are_refused() -> None:
    pyramid = make(SimpleFeaturePyramid, square_pad=64)
    with pytest.raises(ValueError, match=r"square_pad=64 .* 64 x 96: .* model.backbone.square_pad"):
        pyramid(torch.zeros(1, 3, 64, 96))
