"""Files with the last part of a model: masks are pasted and segments are merged in their graph.

The models before the last part are replaced by a few numbers, as tracing them is slow;
tests/commands/test_export.py has a whole Mask R-CNN.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from exported_models import build, predictor_of
from torch import Tensor, nn

from vitadapter.export import export
from vitadapter.export.description import Description, describe
from vitadapter.export.formats import FORMATS
from vitadapter.export.formats.format import padded
from vitadapter.export.graphs import graph_of
from vitadapter.export.graphs.rcnn import RCNNGraph
from vitadapter.export.graphs.segmenters import Mask2FormerGraph
from vitadapter.export.model import ExportedModel
from vitadapter.export.programs import program_of
from vitadapter.modeling.inference import SlidingWindow
from vitadapter.modeling.mask2former.transformer_decoder import MaskPrediction

# Of images, and of the answers.
SIZES = [((61, 83), (61, 83)), ((128, 64), (40, 200)), ((40, 200), (97, 333))]
RANDOM = torch.Generator().manual_seed(3)
MASKS = torch.rand(4, 14, 14, generator=RANDOM)
NOISE = torch.rand(1, 8, 6, generator=RANDOM)
MAPS = 4 * torch.randn(1, 8, 3, 4, generator=RANDOM)
MAPS[:, 5] = MAPS[:, 0] - 0.5  # this query loses most of its mask


def _write(model: nn.Module, folder: Path, formats: Sequence[str]) -> list[Path]:
    graph = graph_of(model, full_size=True)
    program, description = program_of(graph), describe(predictor_of(model), graph, None)
    files = [folder / f"model{FORMATS[name].suffix}" for name in formats]
    for name, file in zip(formats, files, strict=True):
        FORMATS[name].write(program, description, file)
    return files


def _record(size: tuple[int, int], output_size: tuple[int, int]) -> dict:
    image = np.random.default_rng(size[0]).integers(0, 256, (3, *size), np.uint8)
    return {"image": torch.from_numpy(image), "height": output_size[0], "width": output_size[1]}


def _regions(graph: nn.Module, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
    """Boxes, some of which leave the image or have no area, and masks; none in a white image."""
    fractions = torch.tensor(
        [[0.1, 0.2, 0.6, 0.9], [0.5, 0.5, 0.53, 0.54], [0.9, 0.8, 1.0, 1.0], [0.3, 0.3, 0.3, 0.9]]
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    rows = (scores > images.float()[..., :32, :32].mean() / 255).nonzero()[:, 0]
    boxes = fractions * size.flip(0).repeat(2)
    return boxes[rows], scores[rows], torch.arange(4)[rows], MASKS[rows]


def test_masks_are_pasted_as_detectron2_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RCNNGraph, "forward", _regions)
    # ONNX comes last, since translating a program changes it.
    files = _write(build("mask_rcnn"), tmp_path, ["torch", "aoti", "onnx"])
    models = [ExportedModel(file) for file in files]
    white = {"image": torch.full((3, 50, 70), 255, dtype=torch.uint8), "height": 20, "width": 30}
    for record in (*(_record(*sizes) for sizes in SIZES), white):
        size = record["image"].shape[1:]
        boxes, scores, classes, masks = _regions(nn.Module(), record["image"], torch.tensor(size))
        expected = Instances(tuple(size), pred_boxes=Boxes(boxes), scores=scores)
        expected.pred_classes, expected.pred_masks = classes, masks[:, None]
        expected = detector_postprocess(expected, record["height"], record["width"])
        assert len(expected) == (0 if record is white else 3)
        for model in models:
            found = model([record])[0]["instances"]
            assert found.image_size == (record["height"], record["width"])
            assert found.scores.equal(expected.scores)
            assert found.pred_classes.equal(expected.pred_classes)
            assert found.pred_masks.dtype == torch.bool
            torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert found.pred_masks.shape == (len(expected), record["height"], record["width"])
            differing = (found.pred_masks != expected.pred_masks).sum()
            assert differing <= 1e-4 * expected.pred_masks.numel()


def _queries(images: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth maps of queries, several of which are of one class; none is sure in a white image."""
    classes = torch.tensor([0, 3, 3, 1, 5, 0, 4, 3])  # 3 and 4 are stuff, 5 is none
    sure = images.float()[..., :32, :32].mean() < 250
    logits = 9.0 * F.one_hot(classes, 6)[None] * sure + NOISE
    size = [side // 4 for side in images.shape[-2:]]
    masks = F.interpolate(MAPS, size=size, mode="bilinear", align_corners=False)
    return logits, masks


ALL = ["sem_seg", "instances", "panoptic_seg"]


def _compare(found: dict, expected: dict) -> None:
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-4, atol=1e-4)
    instances, reference = found["instances"], expected["instances"]
    assert len(instances) == len(reference) > 0
    assert instances.pred_classes.equal(reference.pred_classes)
    torch.testing.assert_close(instances.scores, reference.scores, rtol=1e-3, atol=1e-4)
    assert (instances.pred_masks != reference.pred_masks).float().mean() < 1e-3
    boxes = instances.pred_boxes.tensor - reference.pred_boxes.tensor
    assert boxes.abs().max() <= 1


# Compiling all kinds of answers takes half a minute.
@pytest.mark.parametrize(("formats", "kinds"), [(["torch", "onnx"], ALL), (["aoti"], ALL[2:])])
def test_queries_are_merged_as_by_the_model(
    formats: list[str], kinds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mask2FormerGraph, "forward", lambda self, images, size: _queries(images))
    model = build("mask2former")
    mean, deviation = model.pixel_mean, model.pixel_std
    model._queries = lambda images: MaskPrediction(
        *_queries(model._padded(list(images * deviation + mean)))
    )
    model.instance_inference.max_per_image = 10
    model.panoptic_inference.score_threshold = 0.5
    if kinds != ALL:
        model.semantic_on, model.instance_inference = False, None
    files = [ExportedModel(file) for file in _write(model, tmp_path, formats)]
    white = {"image": torch.full((3, 50, 70), 255, dtype=torch.uint8), "height": 20, "width": 30}
    for record in (*(_record(*sizes) for sizes in SIZES), white):
        (expected,) = model([record])
        segment_map, segments = expected["panoptic_seg"]
        # Of the seven sure queries, one is dropped and three are parts of one segment.
        assert len(segments) == (0 if record is white else 4)
        for file in files:
            (found,) = file([record])
            assert {*found} == {*expected} == {*kinds}
            if kinds == ALL:
                _compare(found, expected)
            assert found["panoptic_seg"][0].dtype == torch.int32
            assert (found["panoptic_seg"][0] != segment_map).float().mean() < 1e-3
            for ours, other in zip(found["panoptic_seg"][1], segments, strict=True):
                assert ours == pytest.approx(other)


def test_what_has_no_last_part(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    cascade, windows = build("cascade"), build("mask2former")
    windows.inference = SlidingWindow((64, 64), (40, 40))
    for model, message in (
        (build("atss"), "that can be in the graph, got SingleAnchorDetector: leave out full_size"),
        (cascade, "only masks are pasted .*, the model has none"),
        (windows, "sliding windows are outside of the graph"),
    ):
        with pytest.raises(ValueError, match=message):
            export(predictor_of(model), "onnx", file, full_size=True)
    detector = predictor_of(build("mask_rcnn"))
    with pytest.raises(ValueError, match="TensorRT needs the range of each size"):
        export(detector, "tensorrt", file, full_size=True)
    with pytest.raises(ValueError, match="a backbone alone has no last part"):
        export(detector, "onnx", file, full_size=True, only_backbone=True)
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_answers() -> None:
    model = build("mask_rcnn")
    description = describe(predictor_of(model), graph_of(model, full_size=True), None)
    images = torch.zeros(1, 3, 50, 70, dtype=torch.uint8)
    asked = padded(lambda images, size, output_size: [output_size] * 4, description)
    assert asked(images)[0].tolist() == [50, 70]
    assert asked(images, (9, 400))[0].tolist() == [9, 400]
    with pytest.raises(ValueError, match=r"at least 1 pixel, got \(0, 5\)"):
        asked(images, (0, 5))
    without = dataclasses.replace(description, full_size=False)
    with pytest.raises(ValueError, match=r"only a file of full size .*, got output_size=\(9, 9\)"):
        padded(lambda images, size: [size] * 4, without)(images, (9, 9))
    older = json.loads(without.to_json()) | {"version": 2}
    del older["full_size"]
    assert Description.from_json(json.dumps(older)) == without
