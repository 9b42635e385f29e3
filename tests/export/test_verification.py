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
from vitadapter.export.precision import tolerance_of
from vitadapter.export.verification import verify_on_images


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    source = predictor_of(build("semantic_fpn"))
    source = SimpleNamespace(**vars(source))
    model = source.model
    tables = []

    class Source(SimpleNamespace):
        def __call__(self, image: np.ndarray) -> dict[str, torch.Tensor]:
            rgb = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy())
            with torch.no_grad():
                (output,) = model([{"image": rgb}])
            # Another model than the one that was exported.
            return {"sem_seg": output["sem_seg"].roll(1, 0)} if self.flipped else output

    verify = verify_on_images([tmp_path / "a.png"])

    def shown(*args: object) -> object:
        verdict = verify(*args)
        tables.append(verdict.table)
        return verdict

    file = tmp_path / "a.pt2"
    with pytest.raises(ValueError, match=r"difference of classes of pixels .* at most 0\.001, got"):
        export(Source(**vars(source), flipped=True), "torch", file, verify=[shown])
    assert not file.exists()
    export(Source(**vars(source), flipped=False), "torch", file, verify=[shown])
    assert file.is_file()
    assert all("| classes of pixels" in table for table in tables)
    assert tolerance_of(torch.float32).answers["classes of pixels"] == 0.001
