"""What real data contains must not stop any detector, in training or at test time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detector_samples import DETECTORS, make_image, make_targets, tiny_detector
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import Tensor, nn

from vitadapter.data.dataset_mapper import DatasetMapper
from vitadapter.modeling.dense import SingleAnchorDetector

SIZE = (64, 96)
BACKBONE = "backbone.bottom_up."
GOOD = [10.0, 8.0, 70.0, 50.0]
# Boxes of two images.
TARGETS = {
    "no object in one image": ([GOOD], []),
    "no object": ([], []),
    "one pixel": ([[5, 5, 6, 6]], [[7.5, 7.5, 8.5, 8.5], GOOD]),
    "less than a pixel": ([[5.2, 5.2, 5.6, 5.6]], [GOOD]),
    "partly outside": ([[-30, -20, 40, 40]], [[50, 30, 400, 300], GOOD]),
    "around the image": ([[-500, -500, 600, 600]], [GOOD]),
    "many times the same": ([GOOD] * 3, [GOOD]),
}


@pytest.fixture(scope="module", params=DETECTORS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return tiny_detector(request.param)


def _check_training(model: nn.Module, targets: list[Instances]) -> dict[str, Tensor]:
    model.train()
    model.zero_grad()
    batch = [{**make_image(SIZE, i), "instances": t} for i, t in enumerate(targets)]
    with EventStorage():
        losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    # A parameter that is left out stops distributed training.
    left_out = {n for n, _ in model.named_parameters()} - gradients.keys()
    if isinstance(model, SingleAnchorDetector):  # no use for the stride-4 map, and DDP knows
        stride_4 = ("spm.fc1.", "up.", "norm1.")
        left_out -= {n for n in left_out if n.removeprefix(BACKBONE).startswith(stride_4)}
    assert not left_out
    return losses


@pytest.mark.parametrize("case", list(TARGETS))
def test_odd_targets(model: nn.Module, case: str) -> None:
    _check_training(model, [make_targets(boxes, SIZE) for boxes in TARGETS[case]])


def test_only_crowds(model: nn.Module, tmp_path: Path) -> None:
    """The mapper leaves crowds out, and an image without objects trains the background."""
    file_name = tmp_path / "image.png"
    Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(file_name)
    crowd = {
        "bbox": GOOD,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "iscrowd": 1,
        "segmentation": [[10.0, 8.0, 70.0, 8.0, 70.0, 50.0, 10.0, 50.0]],
    }
    record = {
        "file_name": str(file_name),
        "height": SIZE[0],
        "width": SIZE[1],
        "annotations": [crowd],
    }
    mapper = DatasetMapper(
        is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True
    )
    targets = [mapper(record)["instances"] for _ in range(2)]
    assert [len(instances) for instances in targets] == [0, 0]
    losses = _check_training(model, targets)
    assert all(loss == 0 for name, loss in losses.items() if "box" in name or "giou" in name)
    assert sum(loss for name, loss in losses.items() if "cls" in name) > 0


class _NoProposals(nn.Module):
    """An RPN whose boxes are all suppressed."""

    def forward(self, images: object, *_: object) -> tuple[list[Instances], dict[str, Tensor]]:
        return [
            Instances(
                size, proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.ones(0)
            )
            for size in images.image_sizes
        ], {}


def _check_nothing_found(found: Instances, has_masks: bool) -> None:
    assert len(found) == 0
    assert found.image_size == (2 * SIZE[0], 2 * SIZE[1])
    assert found.pred_boxes.tensor.shape == (0, 4)
    assert found.scores.shape == found.pred_classes.shape == (0,)
    assert found.pred_classes.dtype == torch.int64
    assert found.has("pred_masks") == has_masks
    if has_masks:
        assert found.pred_masks.shape == (0, 2 * SIZE[0], 2 * SIZE[1])
        assert found.pred_masks.dtype == torch.bool


def _has_masks(model: nn.Module) -> bool:
    return isinstance(model, GeneralizedRCNN)


def test_no_proposals(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(model, GeneralizedRCNN):
        assert not hasattr(model, "proposal_generator")  # its proposals cannot be none
        return
    monkeypatch.setitem(model._modules, "proposal_generator", _NoProposals())
    _check_training(model, [make_targets([GOOD], SIZE), make_targets([], SIZE)])
    _check_training(model, [make_targets([], SIZE), make_targets([], SIZE)])
    model.eval()
    with torch.no_grad():
        outputs = model([make_image(SIZE, i) for i in range(2)])
    for output in outputs:
        _check_nothing_found(output["instances"], _has_masks(model))


@torch.no_grad()
def test_no_detections(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """No score is high enough; of Sparse R-CNN, which has no threshold, none is wanted."""
    model.eval()
    if isinstance(model, GeneralizedRCNN):
        predictors = model.roi_heads.box_predictor
        for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
            monkeypatch.setattr(predictor, "test_score_thresh", 2.0)
    elif isinstance(model, SingleAnchorDetector):
        monkeypatch.setattr(model, "test_score_thresh", 2.0)
    else:
        monkeypatch.setattr(model, "max_detections_per_image", 0)
    outputs = model([make_image(SIZE, i) for i in range(2)])
    for output in outputs:
        _check_nothing_found(output["instances"], _has_masks(model))


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 96), (33, 2)])
def test_tiny_images(model: nn.Module, size: tuple[int, int]) -> None:
    model.eval()
    (output,) = model([make_image(size)])
    found = output["instances"]
    boxes = found.pred_boxes.tensor
    assert boxes.isfinite().all()
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 2 * size[1]).all()
    assert (boxes[:, 3] <= 2 * size[0]).all()
    assert found.image_size == (2 * size[0], 2 * size[1])
