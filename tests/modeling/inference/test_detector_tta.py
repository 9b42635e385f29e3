"""Multi-scale and flip augmentation against Detectron2's own and against known boxes."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.test_time_augmentation import (
    DatasetMapperTTA,
    GeneralizedRCNNWithTTA,
)
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from vitadapter.layers.nms import HardNMS
from vitadapter.layers.soft_nms import GaussianDecay, SoftNMS
from vitadapter.modeling.inference import DetectorWithTTA, ScaleRangeMapperTTA

MAPPER = DatasetMapperTTA(min_sizes=[64, 96, 128], max_size=200, flip=True)


@pytest.fixture(scope="module")
def mask_rcnn(repository: Path) -> GeneralizedRCNN:
    """The tiny Mask R-CNN with random weights."""
    cfg = LazyConfig.load(str(repository / "tests" / "helpers" / "tiny_mask_rcnn.py"))
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.3
    torch.manual_seed(0)
    return instantiate(cfg.model).eval()


def _image(height: int = 70, width: int = 100) -> dict[str, object]:
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": 2 * height, "width": 2 * width}


@torch.no_grad()
def test_equals_detectron2_where_that_applies(mask_rcnn: GeneralizedRCNN) -> None:
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.5
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    theirs = GeneralizedRCNNWithTTA(cfg, mask_rcnn, MAPPER, batch_size=1)
    ours = DetectorWithTTA(
        mask_rcnn, tta_mapper=MAPPER, nms=HardNMS(0.5), max_detections_per_image=20
    )
    (expected,), (found,) = theirs([_image()]), ours([_image()])
    expected, found = expected["instances"], found["instances"]
    assert len(found) == len(expected) > 3
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert found.pred_masks.shape == (len(found), 140, 200)
    assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-4
    (plain,) = mask_rcnn([_image()])
    assert found.scores.tolist() != plain["instances"].scores.tolist()


class _FindsSpot(nn.Module):
    """Detects the pixels brighter than 128 as one box, whose class is its channel."""

    def __init__(self, found: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        self.backbone.size_divisibility = 32
        self._found = found

    def forward(self, batched_inputs: list[dict[str, object]]) -> list[dict[str, Instances]]:
        return [{"instances": self._detect(single)} for single in batched_inputs]

    def _detect(self, single: dict[str, Tensor]) -> Instances:
        channels, rows, columns = (single["image"] > 128).nonzero().unbind(1)
        box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        found = Instances(tuple(single["image"].shape[1:]))
        found.pred_boxes = Boxes(box[None].float())
        # The largest version is the surest.
        found.scores = torch.tensor([single["image"].shape[2] / 1000])
        found.pred_classes = channels[:1]
        found = found if self._found else found[:0]
        return detector_postprocess(found, single["height"], single["width"])


@pytest.mark.parametrize("mapped", [1, 2])
def test_boxes_come_back_to_the_image(mapped: int) -> None:
    """Of the whole image, or of one that the test mapper made smaller."""
    image = torch.zeros(3, 60, 100, dtype=torch.uint8)
    image[1, 10:30, 60:90] = 255
    single = {"image": image, "height": 60 * mapped, "width": 100 * mapped}
    model = DetectorWithTTA(_FindsSpot(), tta_mapper=MAPPER, nms=HardNMS(0.5))
    (output,) = model([single])
    found = output["instances"]
    assert found.image_size == (60 * mapped, 100 * mapped)
    assert len(found) == 1  # six versions, flipped and not, agree
    expected = torch.tensor([[60.0, 10.0, 90.0, 30.0]]) * mapped
    assert (found.pred_boxes.tensor - expected).abs().max() <= mapped
    assert found.pred_classes.tolist() == [1]
    assert found.scores.item() == pytest.approx(0.2)


def test_any_suppression_merges() -> None:
    image = torch.zeros(3, 60, 100, dtype=torch.uint8)
    image[0, 10:30, 60:90] = 255
    single = {"image": image}  # height and width are those of the image
    model = DetectorWithTTA(
        _FindsSpot(), tta_mapper=MAPPER, nms=SoftNMS(GaussianDecay()), max_detections_per_image=4
    )
    (output,) = model([single])
    scores = output["instances"].scores
    assert 1 < len(scores) <= 4
    assert scores[0].item() == pytest.approx(0.2)
    assert scores[1] < 0.1


@torch.no_grad()
def test_scales_keep_objects_of_their_sizes(mask_rcnn: GeneralizedRCNN) -> None:
    """Merged by hand from runs at one scale: its large boxes from the one, small from the other."""
    single = _image()

    def detector(mapper: DatasetMapperTTA) -> DetectorWithTTA:
        return DetectorWithTTA(
            mask_rcnn, tta_mapper=mapper, nms=HardNMS(1.0), max_detections_per_image=1000
        )

    by_scale = []
    for side in (64, 128):
        (output,) = detector(DatasetMapperTTA([side], 200, True))([single])
        by_scale.append(output["instances"])
    areas = [found.pred_boxes.area() for found in by_scale]
    above, up_to = (area.median().item() for area in areas)
    expected = torch.cat(
        [by_scale[0].scores[areas[0] > above], by_scale[1].scores[areas[1] <= up_to]]
    )
    assert 1 < len(expected) < sum(map(len, by_scale)) - 1
    mapper = ScaleRangeMapperTTA([64, 128], 200, True, [(above, torch.inf), (0, up_to)])
    (output,) = detector(mapper)([single])
    torch.testing.assert_close(output["instances"].scores.sort().values, expected.sort().values)


def test_bounds_of_areas_are_as_in_coco() -> None:
    """A box of exactly 20 x 30 pixels is within "up to 600" and not "above 600"."""
    image = torch.zeros(3, 60, 100, dtype=torch.uint8)
    image[0, 10:30, 60:90] = 255
    for area_range, count in (((0, 600), 1), ((600, 1e9), 0)):
        mapper = ScaleRangeMapperTTA([60], 200, False, [area_range])
        model = DetectorWithTTA(_FindsSpot(), tta_mapper=mapper, nms=HardNMS(0.5))
        assert len(model([{"image": image}])[0]["instances"]) == count


def test_area_ranges_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"one range for each of the 2 min_sizes, got 1"):
        ScaleRangeMapperTTA([64, 96], 200, True, [(0, 10)])
    with pytest.raises(ValueError, match=r"\(above, up to\) .*got \(10, 10\)"):
        ScaleRangeMapperTTA([64], 200, True, [(10, 10)])
    with pytest.raises(ValueError, match=r"must be pairs .*got \(0, 10, 20\)"):
        ScaleRangeMapperTTA([64], 200, True, [(0, 10, 20)])


def test_nothing_found(mask_rcnn: GeneralizedRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DetectorWithTTA(_FindsSpot(found=False), tta_mapper=MAPPER, nms=HardNMS(0.5))
    image = {"image": torch.full((3, 60, 100), 255, dtype=torch.uint8)}
    assert len(model([image])[0]["instances"]) == 0
    monkeypatch.setattr(mask_rcnn.roi_heads.box_predictor, "test_score_thresh", 2.0)
    with torch.no_grad():
        (output,) = DetectorWithTTA(mask_rcnn, tta_mapper=MAPPER, nms=HardNMS(0.5))([_image()])
    assert output["instances"].pred_masks.shape == (0, 140, 200)


def test_an_error_leaves_the_model_as_it_was(
    mask_rcnn: GeneralizedRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: Tensor) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(mask_rcnn.backbone, "forward", fail)
    model = DetectorWithTTA(mask_rcnn, tta_mapper=MAPPER, nms=HardNMS(0.5))
    with pytest.raises(RuntimeError, match="out of memory"):
        model([_image()])
    assert mask_rcnn.roi_heads.mask_on
