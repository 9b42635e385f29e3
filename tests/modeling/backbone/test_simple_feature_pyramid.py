import torch
from detectron2.modeling import SimpleFeaturePyramid as Detectron2SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import ImageList

from vitadapter.modeling.backbone import SimpleFeaturePyramid, ViT


def make(cls: type) -> Detectron2SimpleFeaturePyramid:
    return cls(
        net=ViT(embed_dim=32, depth=2, num_heads=2),
        in_feature="last_feat",
        out_channels=16,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
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
