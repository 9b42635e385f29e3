"""The heads against plain formulas; the detector on odd inputs."""

from collections.abc import Sequence

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from golden_heads import StoredFeatures
from torch import Tensor, nn
from torch.nn import functional as F

from vitadapter.modeling.sparse_rcnn import (
    DynamicConv,
    DynamicHead,
    HungarianMatcher,
    SetCriterion,
    SparseRCNN,
)

DIM, CLASSES, PROPOSALS = 16, 3, 7


class _Pyramid(StoredFeatures):
    """Two levels by pooling one convolution."""

    def __init__(self) -> None:
        super().__init__({}, [])
        self.conv = nn.Conv2d(3, DIM, kernel_size=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.conv(images)
        return {"p2": F.avg_pool2d(x, 4), "p3": F.avg_pool2d(x, 8)}


def _head() -> DynamicHead:
    return DynamicHead(
        num_classes=CLASSES, feature_dim=DIM, num_heads=2, feedforward_dim=32, dynamic_dim=8
    )


@pytest.fixture
def model() -> SparseRCNN:
    torch.manual_seed(0)
    return SparseRCNN(
        backbone=_Pyramid(),
        head_in_features=["p2", "p3"],
        box_pooler=ROIPooler(7, (1 / 4, 1 / 8), sampling_ratio=2, pooler_type="ROIAlignV2"),
        box_heads=[_head(), _head()],
        num_proposals=PROPOSALS,
        feature_dim=DIM,
        box2box_transform=Box2BoxTransform(weights=(2.0, 2.0, 1.0, 1.0)),
        criterion=SetCriterion(HungarianMatcher()),
        max_detections_per_image=10,
        pixel_mean=[120.0] * 3,
        pixel_std=[60.0] * 3,
    )


def _sample(
    boxes: Sequence[Sequence[float]] = ((10.0, 8.0, 50.0, 40.0),), size: tuple[int, int] = (48, 64)
) -> dict[str, object]:
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % CLASSES
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances}


@torch.no_grad()
def test_the_dynamic_convolution_one_region_at_a_time() -> None:
    """Paper, listing 1: two matrices from the proposal, applied to every pixel of its region."""
    torch.manual_seed(0)
    conv = DynamicConv(feature_dim=DIM, hidden_dim=8, pooler_size=3)
    proposals, regions = torch.randn(5, DIM), torch.randn(5, DIM, 3, 3)
    actual = conv(proposals, regions)
    for proposal, region, row in zip(proposals, regions, actual, strict=True):
        weights = F.linear(proposal, conv.dynamic_layer.weight, conv.dynamic_layer.bias)
        first = weights[: DIM * 8].reshape(DIM, 8)
        second = weights[DIM * 8 :].reshape(8, DIM)
        pixels = []
        for y in range(3):
            for x in range(3):
                hidden = F.relu(conv.norm_in(region[:, y, x] @ first))
                pixels.append(F.relu(conv.norm_out(hidden @ second)))
        expected = F.relu(conv.fc_norm(conv.fc_layer(torch.cat(pixels))))
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_untrained_scores_are_the_prior() -> None:
    torch.manual_seed(0)
    logits, deltas, proposals = _head()(torch.randn(2, 5, DIM), torch.randn(10, DIM, 7, 7))
    assert logits.shape == (2, 5, CLASSES)
    assert deltas.shape == (2, 5, 4)
    assert proposals.shape == (2, 5, DIM)
    assert logits.sigmoid().mean().item() < 0.1


def test_proposals_start_as_the_whole_image(model: SparseRCNN) -> None:
    boxes = model._initial_boxes([(48, 64), (30, 20)])
    assert boxes.shape == (2, PROPOSALS, 4)
    assert boxes[0, 0].tolist() == [0, 0, 64, 48]
    assert boxes[1, 3].tolist() == [0, 0, 20, 30]


@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [[5.0, 5.0, 6.0, 6.0]],
        [[-30.0, -20.0, 40.0, 30.0]],
        [[0.0, 0.0, 500.0, 500.0]],
        [[1.0 * i, 2.0, 30.0 + i, 40.0] for i in range(PROPOSALS + 3)],  # more than proposals
    ],
)
def test_odd_annotations(model: SparseRCNN, boxes: list[list[float]]) -> None:
    losses = model([_sample(boxes), _sample(size=(33, 50))])
    assert set(losses) == {
        f"{name}_stage{stage}"
        for name in ("loss_cls", "loss_box_reg", "loss_giou")
        for stage in (0, 1)
    }
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_no_objects_at_all(model: SparseRCNN) -> None:
    sum(model([_sample([])]).values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_no_gradient_flows_through_a_box_into_the_stage_before(model: SparseRCNN) -> None:
    losses = model([_sample()])
    losses["loss_box_reg_stage1"].backward()
    assert model.stages[0].fc_reg.weight.grad is None
    assert model.stages[0].ffn[0].weight.grad.abs().sum() > 0  # through the proposals


@torch.no_grad()
def test_detections(model: SparseRCNN) -> None:
    model.eval()
    sample = {**_sample(), "height": 96, "width": 128}
    (output,) = model([sample])
    found = output["instances"]
    assert found.image_size == (96, 128)
    assert 0 < len(found) <= 10
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert found.pred_classes.max() < CLASSES
    boxes = found.pred_boxes.tensor
    assert (boxes >= 0).all()
    assert boxes[:, 2].max() <= 128


@torch.no_grad()
def test_more_detections_wanted_than_there_are(model: SparseRCNN) -> None:
    model.eval()
    model.max_detections_per_image = 1000
    (output,) = model([_sample()])
    assert len(output["instances"]) <= PROPOSALS * CLASSES
