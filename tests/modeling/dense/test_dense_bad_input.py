"""What real annotations contain must not stop the dense detectors."""

from collections.abc import Sequence

import pytest
import torch
from dense_configs import dense_config, shrink_dense
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from vitadapter.modeling.dense import SingleAnchorDetector

SIZE = (64, 96)


class _Pyramid(Backbone):
    """The cheapest network with p3 .. p7."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, kernel_size=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.conv(images)
        return {f"p{i}": nn.functional.avg_pool2d(x, 2**i, ceil_mode=True) for i in range(3, 8)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(3, 8)}

    @property
    def size_divisibility(self) -> int:
        return 32


@pytest.fixture(params=["atss", "gfl"])
def model(request: pytest.FixtureRequest) -> SingleAnchorDetector:
    cfg = shrink_dense(dense_config(request.param))
    torch.manual_seed(0)
    cfg.model.head.in_channels = 32
    cfg.model.backbone = _Pyramid()
    return instantiate(cfg.model)


def _sample(boxes: Sequence[Sequence[float]], size: tuple[int, int] = SIZE) -> dict[str, object]:
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances}


def _losses(model: nn.Module, batch: list[dict[str, object]]) -> dict[str, Tensor]:
    model.train()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name  # it would stop distributed training
        assert parameter.grad.isfinite().all(), name
    assert all(loss.isfinite() for loss in losses.values())
    return losses


GOOD = [10.0, 8.0, 70.0, 50.0]


@pytest.mark.parametrize(
    "boxes",
    [
        [[5.0, 5.0, 6.0, 6.0]],  # one pixel, between the anchors' centres
        [[7.5, 7.5, 8.5, 8.5]],  # one pixel around a centre
        [[-30.0, -20.0, 40.0, 40.0]],
        [[50.0, 30.0, 400.0, 300.0]],
        [[-500.0, -500.0, 600.0, 600.0]],
        [GOOD, GOOD, GOOD],
        [[10.0, 10.0, 10.5, 60.0], GOOD],
    ],
)
def test_odd_boxes(model: SingleAnchorDetector, boxes: list[list[float]]) -> None:
    losses = _losses(model, [_sample(boxes)])
    assert losses["loss_cls"] > 0


def test_no_object_in_any_image(model: SingleAnchorDetector) -> None:
    """Also what is left of an image whose objects are all crowds."""
    losses = _losses(model, [_sample([]), _sample([])])
    assert losses["loss_cls"] > 0
    assert losses["loss_box_reg"] == 0


def test_an_image_without_object_counts_as_one_sample(model: SingleAnchorDetector) -> None:
    one = _losses(model, [_sample([])])["loss_cls"].item()
    two = _losses(model, [_sample([]), _sample([])])["loss_cls"].item()
    assert two == pytest.approx(one, rel=1e-4)


def test_no_object_in_one_image_leaves_the_other_its_boxes(model: SingleAnchorDetector) -> None:
    both = _losses(model, [_sample([GOOD]), _sample([])])
    one = _losses(model, [_sample([GOOD])])
    assert both["loss_box_reg"].item() == pytest.approx(one["loss_box_reg"].item(), rel=1e-4)


def test_padding_of_the_batch_has_no_loss(model: SingleAnchorDetector) -> None:
    """A small image beside a large one: anchors beyond its own padding are no background."""
    batch = [_sample([GOOD], (64, 96)), _sample([GOOD], (128, 256))]
    images = model.preprocess_image(batch)
    features = list(model.backbone(images.tensor).values())
    anchors = model.anchor_generator(features)
    instances = [single["instances"] for single in batch]
    labels, _ = model.label_anchors(anchors, instances, images.image_sizes)
    x, y = Boxes.cat(anchors).get_centers().unbind(1)
    assert ((labels[0] == -1) == ((x >= 96) | (y >= 64))).all()
    assert (labels[1] >= 0).all()
    # Two images of one size: nothing is ignored.
    alone, _ = model.label_anchors(anchors, instances[1:], images.image_sizes[1:])
    assert (alone >= 0).all()


def test_nothing_found(model: SingleAnchorDetector) -> None:
    model.eval()
    model.test_score_thresh = 1.0
    with torch.no_grad():
        (output,) = model([_sample([])])
    found = output["instances"]
    assert len(found) == 0
    assert found.pred_boxes.tensor.shape == (0, 4)
    assert found.scores.shape == found.pred_classes.shape == (0,)


def test_predictions_that_are_not_finite_are_not_detections(model: SingleAnchorDetector) -> None:
    model.eval()
    with torch.no_grad():
        model.head.bbox_pred.weight.fill_(float("nan"))
        (output,) = model([_sample([])])
    assert len(output["instances"]) == 0


def test_an_image_of_one_pixel(model: SingleAnchorDetector) -> None:
    model.eval()
    with torch.no_grad():
        (output,) = model([_sample([], (1, 1))])
    boxes = output["instances"].pred_boxes.tensor
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()


def test_more_anchors_per_location_are_refused() -> None:
    cfg = shrink_dense(dense_config("atss"))
    cfg.model.anchor_generator.aspect_ratios = [0.5, 1.0]
    cfg.model.backbone = _Pyramid()
    cfg.model.head.in_channels = 32
    with pytest.raises(ValueError, match=r"one anchor per location, got \[2, 2, 2, 2, 2\]"):
        instantiate(cfg.model)


def test_anchors_of_another_scale_are_refused_by_gfl() -> None:
    cfg = shrink_dense(dense_config("gfl"))
    cfg.model.anchor_generator.sizes[1] = [100]
    cfg.model.backbone = _Pyramid()
    cfg.model.head.in_channels = 32
    with pytest.raises(ValueError, match=r"anchor_scale=8.0 strides wide, got one of 100.0 pixels"):
        instantiate(cfg.model)
