import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.sample_sheets import Tile, draw_sample, draw_sheet, shown_image

PALETTE = Palette(["cat", "dog"])
SIDE = 360  # of a drawn image


def sample_of(**targets: object) -> dict:
    image = torch.full((3, 60, 120), 128, dtype=torch.uint8)
    return {"file_name": "/data/a.jpg", "image": image, **targets}


def instances_of(masks: object) -> Instances:
    found = Instances((60, 120))
    found.gt_boxes = Boxes(torch.tensor([[20.0, 10, 60, 50]]))
    found.gt_classes = torch.tensor([1])
    found.gt_masks = masks
    return found


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_images_of_any_number_of_channels_are_shown(channels: int, image_format: str) -> None:
    image = torch.arange(channels, dtype=torch.uint8)[:, None, None].repeat(1, 2, 2)
    expected = {1: [0, 0, 0], 2: [0, 1, 0]}.get(channels, [0, 1, 2])
    expected = expected[::-1] if image_format == "BGR" else expected
    assert shown_image(image, image_format)[0, 0].tolist() == expected


def test_numbers_are_scaled_to_be_shown() -> None:
    image = torch.tensor([-0.5, 0.5, float("nan")])[:, None, None].repeat(1, 1, 2)
    assert shown_image(image, "RGB")[0, 0].tolist() == [0, 255, 128]
    assert shown_image(torch.zeros(3, 2, 2), "RGB").max() == 0


@pytest.mark.parametrize("kind", ["polygons", "bitmasks"])
def test_boxes_and_masks_are_where_the_targets_are(kind: str) -> None:
    bitmask = torch.zeros(1, 60, 120, dtype=torch.bool)
    bitmask[0, 10:50, 20:60] = True
    polygon = np.array([20, 10, 60, 10, 60, 50, 20, 50], dtype=float)
    masks = BitMasks(bitmask) if kind == "bitmasks" else PolygonMasks([[polygon]])
    tile = draw_sample(sample_of(instances=instances_of(masks)), "RGB", PALETTE, ", 1 crowd")
    assert tile.image.shape == (SIDE // 2, SIDE, 3)
    assert tile.caption == "a.jpg, 120 x 60, 1 crowd"
    assert tile.classes == {1}
    changed = (tile.image != 128).any(axis=-1)
    inside = np.zeros_like(changed)
    inside[30:151, 60:181] = True
    assert changed[32:148, 62:178].all()
    assert not changed[~inside][: SIDE * 10].any()
    assert not changed[152:].any()
    assert not changed[:, 183:].any()


def test_thin_masks_do_not_vanish() -> None:
    bitmask = torch.zeros(1, 3600, 1800, dtype=torch.bool)
    bitmask[0, 1000:3000, 900] = True
    found = Instances((3600, 1800))
    found.gt_boxes, found.gt_classes = (
        Boxes(torch.tensor([[0.0, 0, 1800, 3600]])),
        torch.tensor([1]),
    )
    found.gt_masks = BitMasks(bitmask)
    image = torch.full((3, 3600, 1800), 128, dtype=torch.uint8)
    tile = draw_sample({"file_name": "a", "image": image, "instances": found}, "RGB", PALETTE)
    assert (tile.image[120:280, 88:93] != 128).any(axis=(1, 2)).all()


def test_label_maps_are_beside_the_image() -> None:
    labels = torch.full((60, 120), 255)
    labels[:, :60] = 1
    tile = draw_sample(sample_of(sem_seg=labels), "RGB", PALETTE)
    left, right = tile.image[:, :SIDE], tile.image[:, -SIDE:]
    assert (left == 128).all()
    assert (right[:, : SIDE // 2] != 128).any(axis=-1).all()
    assert (right[:, SIDE // 2 :] == 128).all()
    assert tile.classes == {1}


def test_segments_of_one_class_are_told_apart() -> None:
    masks = torch.zeros(2, 60, 120, dtype=torch.bool)
    masks[0, :, :40], masks[1, :, 40:80] = True, True
    segments = Instances((60, 120))
    segments.gt_masks, segments.gt_classes = BitMasks(masks), torch.tensor([0, 0])
    tile = draw_sample(sample_of(instances=segments), "RGB", PALETTE)
    drawn = tile.image[:, -SIDE:]
    assert (drawn[:, 119] == 255).all()
    assert (drawn[:, 50] == drawn[:, 180]).all()
    assert (drawn[:, 260:] == 128).all()
    assert tile.classes == {0}


def test_images_without_annotations() -> None:
    empty = Instances((60, 120))
    for targets in ({}, {"instances": empty}):
        tile = draw_sample(sample_of(**targets), "RGB", PALETTE)
        assert (tile.image == 128).all()
        assert tile.classes == frozenset()
        assert draw_sheet([tile], PALETTE).shape[1] == SIDE + 2 * 6


@pytest.mark.parametrize(("width", "count", "columns"), [(360, 9, 4), (724, 5, 2), (360, 3, 3)])
def test_sheets_have_rows_of_equal_places(width: int, count: int, columns: int) -> None:
    colors = [(20 * n + 40, 0, 0) for n in range(count)]
    tiles = [
        Tile(np.full((100, width, 3), color, np.uint8), "x" * 300, frozenset({n % 2}))
        for n, color in enumerate(colors)
    ]
    sheet = draw_sheet(tiles, PALETTE)
    assert sheet.shape[1] == columns * width + (columns - 1) * 20 + 2 * 6
    for color in colors:
        assert (sheet == color).all(axis=-1).sum() == 100 * width
    legend = {tuple(color) for color in sheet[-22:].reshape(-1, 3).tolist()}
    assert {PALETTE.color(0), PALETTE.color(1)} <= legend
