"""Comparisons of an exported file with its model."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from exported_models import build, predictor_of
from PIL import Image

from vitadapter.export import export
from vitadapter.export.differences import differences
from vitadapter.export.verification import Verdict, verify_on_images


def _instances(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Instances:
    masks = torch.zeros(len(boxes), 40, 80, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    return Instances(
        (40, 80),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes),
        pred_masks=masks,
    )


def test_detections_are_paired_by_class_and_place() -> None:
    boxes = [[0.0, 0.0, 20.0, 20.0], [40.0, 0.0, 60.0, 20.0], [0.0, 20.0, 10.0, 40.0]]
    expected = _instances(boxes, [0.9, 0.8, 0.1], [0, 1, 2])
    same = differences({"instances": expected}, {"instances": expected})
    assert same == {"detections": [0] * 4, "scores": [0] * 2, "boxes": [0] * 2, "masks": [0] * 2}
    moved = [[4.0, 0.0, 20.0, 20.0], [40.0, 0.0, 60.0, 20.0], [70.0, 0.0, 80.0, 40.0]]
    found = _instances(moved, [0.7, 0.8, 0.4], [0, 0, 2])  # another place, class, and a new one
    values = differences({"instances": expected}, {"instances": found})
    assert values["detections"] == [0, 1, 0, 1, 1]
    assert values["scores"] == pytest.approx([0.2])
    assert values["boxes"] == pytest.approx([4 / 80])
    assert values["masks"] == pytest.approx([1 - 16 / 20])
    none = _instances([], [], [])
    none.pred_boxes = Boxes(torch.zeros(0, 4))
    assert differences({"instances": none}, {"instances": found})["detections"] == [1, 1, 1]


def test_pixels_are_compared_by_class_and_segment() -> None:
    scores = torch.zeros(2, 10, 10)
    scores[1, :5] = 1
    others = scores.clone()
    others[1, 5] = 1
    assert differences({"sem_seg": scores}, {"sem_seg": others}) == {
        "classes of pixels": pytest.approx([0.1])
    }
    numbers = scores.argmax(dim=0) + 1
    segments = [{"id": 1, "category_id": 4}, {"id": 2, "category_id": 5}]
    swapped = [{"id": 2, "category_id": 4}, {"id": 1, "category_id": 5}]
    other_class = [segments[0], {"id": 2, "category_id": 6}]
    for maps, described, share in (
        (3 - numbers, swapped, 0),
        (numbers, other_class, 0.5),
        (others.argmax(dim=0) + 1, segments, 0.1),
    ):
        answers = [{"panoptic_seg": each} for each in ((numbers, segments), (maps, described))]
        assert differences(*answers) == {"segments of pixels": pytest.approx([share], abs=1e-6)}


def test_a_file_that_answers_otherwise_on_images_is_not_written(
    tmp_path: Path,
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    model = build("semantic_fpn")
    tables = []

    class Source(SimpleNamespace):
        """A predictor that answers otherwise than the model, as if the file were wrong."""

        def __call__(self, image: np.ndarray) -> dict[str, torch.Tensor]:
            rgb = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy())
            with torch.no_grad():
                (output,) = model([{"image": rgb}])
            return {"sem_seg": output["sem_seg"].roll(1, 0)}

    def verify(*args: object) -> Verdict:
        verdict = verify_on_images([tmp_path / "a.png"])(*args)
        tables.append(verdict.table)
        return verdict

    source, file = Source(**vars(predictor_of(model))), tmp_path / "a.pt2"
    with pytest.raises(ValueError, match=r"difference of classes of pixels .* at most 0\.001, got"):
        export(source, "torch", file, verify=[verify])
    assert not file.exists()
    assert "| classes of pixels" in tables[0]
    with pytest.raises(ValueError, match="a backbone alone has no answers to compare"):
        export(source, "torch", file, only_backbone=True, verify=[verify])
    with pytest.raises(ValueError, match=r"only TensorRT can run, .* leave out verify"):
        export(source, "tensorrt", file.with_suffix(".onnx"), verify=[verify])
