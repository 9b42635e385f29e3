"""Tiles against the same model on the whole image."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import ideal_models
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, RotatedBoxes
from ideal_models import draw, drawn, record_of

from vitadapter.encoded_masks import intersection
from vitadapter.modeling.inference import TiledInference, Tiles
from vitadapter.modeling.inference.tiled_maps import TiledSegments
from vitadapter.modeling.inference.tiled_objects import TiledObjects
from vitadapter.modeling.inference.tiles import overlaps


def to_tensor(tile: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(tile.transpose(2, 0, 1).copy())


def tiled(predict: Callable, tiles: Tiles, image: np.ndarray) -> dict:
    return TiledInference(predict, tiles, to_tensor)([record_of(image)])[0]


def described(instances: Instances) -> list[tuple]:
    """Class, box and mask of each object, in one order."""
    objects = []
    for index, box in enumerate(instances.pred_boxes.tensor.tolist()):
        mask = instances.pred_masks[index].numpy().tobytes() if instances.has("pred_masks") else b""
        objects.append((int(instances.pred_classes[index]), tuple(box), mask))
    return sorted(objects)


def crowded(seed: int = 0) -> np.ndarray:
    """Ellipses of two classes everywhere, with sides from 3 to 40 pixels, some of them touching."""
    rng = np.random.default_rng(seed)
    image = drawn(200, 260)
    rows, columns = np.mgrid[:200, :260]
    for number in range(1, 60):
        y, x = rng.uniform(0, 200), rng.uniform(0, 260)
        h, w = rng.uniform(3, 20, 2)
        inside = ((rows - y) / h) ** 2 + ((columns - x) / w) ** 2 < 1
        if not image[inside].any():
            draw(image, number, int(rng.integers(1, 3)), inside)
    return image


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_objects_that_a_tile_sees_whole(masks: bool, batch_size: int) -> None:
    """All are smaller than the overlap of 48 pixels."""
    image, predict = crowded(), partial(ideal_models.detections, masks=masks)
    (whole,) = predict([record_of(image)])
    assert len(whole["instances"]) > 30
    found = tiled(predict, Tiles(96, 0.5, batch_size=batch_size), image)["instances"]
    assert found.image_size == (200, 260)
    assert described(found) == described(whole["instances"])
    assert found.scores.tolist() == sorted(whole["instances"].scores.tolist(), reverse=True)


@pytest.mark.parametrize("masks", [True, False])
def test_objects_that_no_tile_sees_whole(masks: bool) -> None:
    image, predict = drawn(200, 260), partial(ideal_models.detections, masks=masks)
    draw(image, 1, 1, np.s_[20:30, 5:255])  # across five tiles
    draw(image, 2, 1, np.s_[30:40, 5:255])  # touches it, of the same class
    draw(image, 3, 2, np.s_[42:50, 5:255])
    draw(image, 4, 1, np.s_[60:190, 60:180])  # across corners
    draw(image, 5, 1, np.s_[60:190, 180:220])
    (whole,) = predict([record_of(image)])
    found = tiled(predict, Tiles(64, 0.25), image)["instances"]
    assert described(found) == described(whole["instances"])


def test_slanted_neighbours_are_told_apart_by_their_masks() -> None:
    """Their boxes nearly coincide."""
    image, predict = drawn(120, 400), partial(ideal_models.detections, masks=True)
    rows, columns = np.mgrid[:120, :400]
    for number in range(1, 7):
        middle = columns / 6 + 10 * (number - 1)
        draw(image, number, 1, (rows >= middle) & (rows < middle + 9))
    (whole,) = predict([record_of(image)])
    found = tiled(predict, Tiles(120, 0.2), image)["instances"]
    assert len(found) == 6
    assert described(found) == described(whole["instances"])


def test_what_one_tile_tells_apart_stays_apart() -> None:
    """Two detections of one place, as Mask2Former gives them."""

    def twice(records: Sequence) -> list[dict]:
        outputs = ideal_models.detections(records, masks=True)
        return [{"instances": Instances.cat([o["instances"]] * 2)} for o in outputs]

    image = drawn(64, 100)
    draw(image, 1, 1, np.s_[10:50, 5:95])
    assert len(tiled(twice, Tiles(64, 0.3), image)["instances"]) == 2


def in_halves(records: Sequence, masks: bool) -> list[dict]:
    """An upper and a lower object in place of each that the left border of an image cuts."""
    outputs = []
    for output in ideal_models.detections(records, masks=masks):
        whole = output["instances"]
        halves = [whole[whole.pred_boxes.tensor[:, 0] > 0]]
        for is_lower in (False, True):
            half = whole[whole.pred_boxes.tensor[:, 0] == 0]
            middle = half.pred_boxes.tensor[:, 1::2].mean(1)
            half.pred_boxes.tensor[:, 1 if is_lower else 3] = middle
            if masks:
                for mask, row in zip(half.pred_masks, middle.long(), strict=True):
                    mask[slice(0, row) if is_lower else slice(row, None)] = False
            halves.append(half)
        outputs.append({"instances": Instances.cat(halves)})
    return outputs


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("right", [98, 100])
def test_an_object_that_another_tile_sees_in_halves(masks: bool, right: int) -> None:
    """The first tile ends at 100, the second one begins at 80."""
    image = drawn(100, 180)
    draw(image, 1, 1, np.s_[10:90, 60:right])
    draw(image, 2, 1, np.s_[20:80, 120:160])  # another object, which nothing touches
    (whole,) = ideal_models.detections([record_of(image)], masks=masks)
    found = tiled(partial(in_halves, masks=masks), Tiles(100, 0.2), image)["instances"]
    assert described(found) == described(whole["instances"])


def test_a_segment_that_another_tile_sees_in_halves() -> None:
    def halved(records: Sequence) -> list[dict]:
        (output,) = ideal_models.segments(records)
        ids, listed = output["panoptic_seg"]
        for segment in list(listed):
            mask = ids == segment["id"]
            if mask[:, 0].any() and segment["isthing"]:
                mask[:50] = False
                ids[mask] = len(listed) + 1
                listed.append({**segment, "id": len(listed) + 1})
        return [output]

    image = drawn(100, 180)
    draw(image, 1, 1, np.s_[10:90, 60:100])
    draw(image, 2, 1, np.s_[20:80, 120:160])
    (whole,) = ideal_models.segments([record_of(image)])
    found = tiled(halved, Tiles(100, 0.2), image)["panoptic_seg"]
    assert partition(*found) == partition(*whole["panoptic_seg"])


def test_objects_in_front_of_another_are_no_parts_of_it() -> None:
    """The second tile sees less of the large one, but both tiles tell the small ones apart."""
    image = drawn(100, 180)
    draw(image, 1, 1, np.s_[10:90, 20:98])
    for number, row in enumerate((20, 40, 60), start=2):
        draw(image, number, 1, np.s_[row : row + 10, 84:94])
    boxes_alone = partial(ideal_models.detections, masks=False)
    (whole,) = boxes_alone([record_of(image)])
    found = tiled(boxes_alone, Tiles(100, 0.2), image)["instances"]
    assert described(found) == described(whole["instances"])


def test_a_tile_that_sees_all_of_an_object_is_trusted_with_its_parts() -> None:
    """The first tile has missed the small object, but sees no more of the large one."""
    tiles = Tiles(100, 0.5)
    objects = TiledObjects(tiles.of(100, 150), (100, 150), tiles)
    for number, boxes in enumerate([[[60, 10, 90, 90]], [[10, 10, 40, 90], [15, 20, 35, 50]]]):
        found = Instances((100, 100), pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
        found.scores, found.pred_classes = torch.ones(len(boxes)), torch.zeros(len(boxes))
        objects.add(number, found)
    assert len(objects.merged()) == 2


def test_a_cut_object_is_left_to_the_tile_that_sees_more() -> None:
    """Its cut end is mistaken for another class."""

    def mistaken(records: Sequence) -> list[dict]:
        outputs = ideal_models.detections(records, masks=True)
        for output in outputs:
            found = output["instances"]
            found.pred_classes[found.pred_boxes.area() < 200] = 2
        return outputs

    image = drawn(64, 112)
    draw(image, 1, 1, np.s_[20:40, 30:60])  # the second tile begins at 48
    found = tiled(mistaken, Tiles(64, 0.25), image)["instances"]
    assert found.pred_classes.tolist() == [1]
    assert found.pred_boxes.tensor.tolist() == [[30, 20, 60, 40]]


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.7])
def test_label_maps(overlap: float) -> None:
    image = crowded()
    found = tiled(ideal_models.class_scores, Tiles(50, overlap), image)
    assert found.keys() == {"label_map"}
    assert torch.equal(found["label_map"], torch.from_numpy(image[..., 1].astype(np.int16)))


def test_a_pixel_has_the_class_that_is_seen_from_its_middle() -> None:
    """Each tile says how far its pixels are from its left border."""

    def distance(records: Sequence) -> list[dict]:
        width = records[0]["width"]
        return [{"sem_seg": torch.eye(width)[:, None].expand(-1, 4, -1)} for _ in records]

    found = tiled(distance, Tiles(10, 0.4), drawn(4, 22))["label_map"]
    assert found[0].tolist() == [*range(8), *range(2, 8), *range(2, 10)]


def partition(ids: torch.Tensor, listed: Sequence[dict]) -> set[tuple]:
    """Class and pixels of each segment, whatever its number."""
    return {(s["category_id"], s["isthing"], (ids == s["id"]).numpy().tobytes()) for s in listed}


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_panoptic_maps(overlap: float) -> None:
    image = crowded()
    draw(image, 61, 3, np.s_[0:20, :])  # stuff at both ends of the image
    draw(image, 62, 3, np.s_[180:200, :])
    draw(image, 63, 1, np.s_[90:110, 5:255])  # across five tiles, and its neighbour
    draw(image, 64, 1, np.s_[110:120, 5:255])
    (whole,) = ideal_models.segments([record_of(image)])
    ids, listed = tiled(ideal_models.segments, Tiles(96, overlap), image)["panoptic_seg"]
    assert ids.dtype == torch.int32
    assert [s["id"] for s in listed] == list(range(1, len(listed) + 1))
    assert partition(ids, listed) == partition(*whole["panoptic_seg"])


def test_panoptic_maps_of_tiles_are_not_kept() -> None:
    """But for those that later tiles share pixels with."""
    tiles = Tiles(64, 0.25)
    listed = tiles.of(64 + 48 * 9, 64 + 48 * 4)
    segments = TiledSegments(listed, (64 + 48 * 9, 64 + 48 * 4), tiles)
    assert len(listed) == 50
    for number in range(50):
        segments.add(number, (torch.zeros(64, 64, dtype=torch.int32), []))
        assert len(segments._maps) <= 6


@pytest.mark.parametrize("size", [(30, 30), (100, 40), (55, 101)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
def test_tiles_that_overlap(size: tuple[int, int], overlap: float) -> None:
    tiles = Tiles(20, overlap).of(*size)
    pairs = combinations(enumerate(tiles), 2)
    wanted = {(i, j): intersection(a.region, b.region) for (i, a), (j, b) in pairs}
    found = list(overlaps(tiles))
    assert {(i, j): region for i, j, region in found} == {k: v for k, v in wanted.items() if v}
    assert len(found) == len({(i, j) for i, j, _ in found})


@pytest.mark.parametrize("merger", [TiledObjects, TiledSegments])
def test_objects_across_tiles_side_by_side(merger: type, caplog: pytest.LogCaptureFixture) -> None:
    for overlap, warned in ((0.01, False), (0.004, True)):
        tiles = Tiles(100 if merger is TiledObjects else 101, overlap)
        for _ in range(2):
            merger(tiles.of(100, 180), (100, 180), tiles)
        assert len(re.findall("share no pixel", caplog.text)) == warned


@pytest.mark.parametrize("predict", [ideal_models.segments, ideal_models.class_scores])
def test_nothing_but_background(predict: Callable) -> None:
    found = tiled(predict, Tiles(50), drawn(70, 60))
    for output in found.values():
        ids, listed = output if isinstance(output, tuple) else (output, [])
        assert not ids.any()
        assert listed == []


@pytest.mark.parametrize("masks", [True, False])
def test_no_objects(masks: bool) -> None:
    found = tiled(partial(ideal_models.detections, masks=masks), Tiles(50), drawn(70, 60))
    assert len(found["instances"]) == 0
    assert found["instances"].has("pred_masks") == masks


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (30, 20)])
def test_images_that_fit_into_a_tile_along_a_side(size: tuple[int, int]) -> None:
    image = drawn(*size)
    draw(image, 1, 1, np.s_[:, :])
    (box,) = tiled(partial(ideal_models.detections, masks=True), Tiles(100, 0.3), image)[
        "instances"
    ].pred_boxes
    assert box.tolist() == [0, 0, size[1], size[0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, r"size of tiles must be a positive integer, got 0"),
        ({"size": 64.5}, r"size of tiles must be a positive integer, got 64\.5"),
        ({"size": "64"}, r"size of tiles must be a positive integer, got '64'"),
        ({"size": 8, "batch_size": 0}, r"batch_size of tiles must be a positive integer, got 0"),
        ({"size": 8, "overlap": "0.2"}, r"overlap of tiles must be a number, got '0\.2'"),
        ({"size": 8, "overlap": 1.0}, r"overlap of tiles must be in \[0, 1\), got 1\.0"),
        ({"size": 8, "overlap": -0.1}, r"overlap of tiles must be in \[0, 1\), got -0\.1"),
        ({"size": 8, "iou_threshold": 0.0}, r"iou_threshold of tiles must be in \(0, 1\], got 0"),
    ],
)
def test_bad_settings(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiles(**arguments)


def test_too_many_tiles() -> None:
    with pytest.raises(
        ValueError, match=r"at most 4096 tiles, got \d+ of 100 pixels with an overl"
    ):
        Tiles(100, 0.99).of(3000, 3000)


def test_a_cut_object_that_no_other_tile_has_found_is_kept() -> None:
    tiles = Tiles(100, 0.2)
    both = tiles.of(100, 180)
    objects = TiledObjects(both, (100, 180), tiles)
    found = Instances((100, 100))
    found.pred_boxes = Boxes(torch.tensor([[82.0, 10.0, 99.5, 40.0]]))
    found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    objects.add(0, found)
    assert objects.merged().pred_boxes.tensor.tolist() == found.pred_boxes.tensor.tolist()
    other = Instances((100, 100))  # the same one, seen whole by the second tile
    other.pred_boxes = Boxes(torch.tensor([[2.0, 10.0, 40.0, 40.0]]))
    other.scores, other.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    objects.add(1, other)
    assert objects.merged().pred_boxes.tensor.tolist() == [[82.0, 10.0, 120.0, 40.0]]


def test_what_cannot_be_merged_is_refused() -> None:
    image = drawn(40, 40)
    with pytest.raises(ValueError, match=r"but the model predicts proposals"):
        tiled(lambda records: [{"proposals": None}], Tiles(40), image)
    boxes = RotatedBoxes(torch.ones(1, 5))
    found = Instances((40, 40), pred_boxes=boxes, scores=torch.ones(1), pred_classes=torch.ones(1))
    with pytest.raises(ValueError, match=r"boxes and masks of objects, but not RotatedBoxes"):
        tiled(lambda records: [{"instances": found}], Tiles(40), image)
    found = ideal_models.detections([record_of(image)], masks=False)[0]["instances"]
    found.pred_keypoints = torch.zeros(0, 17, 3)
    with pytest.raises(ValueError, match=r"but not pred_keypoints"):
        tiled(lambda records: [{"instances": found}], Tiles(40), image)


def test_resized_images_are_refused() -> None:
    inference = TiledInference(ideal_models.class_scores, Tiles(40), to_tensor)
    record = {**record_of(drawn(40, 40)), "height": 80, "width": 80, "file_name": "a.png"}
    with pytest.raises(ValueError, match=r"a\.png .*set dataloader\.test\.mapper\.augmentations"):
        inference([record])


_MEMORY = """
import resource
import torch
from detectron2.structures import Boxes, Instances
from vitadapter.modeling.inference import TiledInference, Tiles
from vitadapter.modeling.inference.tiled_objects import TiledObjects

def predict(records):
    found = Instances((640, 640))
    found.pred_masks = torch.zeros(5, 640, 640, dtype=torch.bool)
    found.pred_masks[:, 8:-8, 8:-8] = True
    found.pred_boxes = Boxes(torch.tensor([[8.0, 8, 632, 632]]).repeat(5, 1))
    found.scores, found.pred_classes = torch.ones(5), torch.arange(5)
    return [{"instances": found}]

def peak():  # in MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

tiled = TiledInference(predict, Tiles(640, 0.0), lambda tile: torch.from_numpy(tile))
before = peak()
(output,) = tiled([{"image": torch.zeros(3, 2560, 2560, dtype=torch.uint8)}])
masks = output["instances"].pred_masks
assert len(masks) == 80 and all(int(mask.sum()) == 624**2 for mask in masks)
print(peak() - before)
"""


def test_masks_of_a_large_image_are_not_held_at_full_size() -> None:
    """There, 80 masks would have 500 MiB. The image has 19."""
    command = [sys.executable, "-c", _MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 125
