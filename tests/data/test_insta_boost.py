import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
from coco_samples import polygon_of, rle_of
from detectron2.config import instantiate
from detectron2.structures import BoxMode, polygons_to_bitmask
from project_configs import CONFIGS, load
from pycocotools import mask as mask_util

from vitadapter.data.coco import load_coco_dataset
from vitadapter.data.dataset_mapper import DatasetMapper
from vitadapter.data.insta_boost import InstaBoost

SIZE = 128
GREY = 128
# Boxes (x, y, w, h) that keep apart, and from the border, whatever happens to them.
APART = ((20, 24, 32, 26), (80, 76, 24, 30))
COLOURS = ((220, 40, 40), (40, 200, 60), (60, 80, 230))
STILL = {"prob": 1.0, "scale": (1, 1), "max_shift": (0, 0), "angle": (0, 0), "color_prob": 0.0}

Annotation = dict[str, object]
Box = tuple[int, int, int, int]


def scene(boxes: tuple[Box, ...], masks: str = "polygon") -> tuple[np.ndarray, list[Annotation]]:
    """Rectangles of one colour each on grey."""
    image = np.full((SIZE, SIZE, 3), GREY, dtype=np.uint8)
    annotations = []
    for label, (x, y, w, h) in enumerate(boxes):
        image[y : y + h, x : x + w] = COLOURS[label]
        box = (x, y, w, h)
        annotations.append(
            {
                "bbox": [float(v) for v in box],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": label,
                "iscrowd": 0,
                "segmentation": polygon_of(box) if masks == "polygon" else rle_of(box, SIZE),
            }
        )
    return image, annotations


def seed(number: int) -> None:
    """Of the generator that Detectron2's augmentations draw from."""
    np.random.seed(number)  # noqa: NPY002


def mask_of(annotation: Annotation) -> np.ndarray:
    """As pycocotools or Detectron2 rasterises it."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation).astype(bool)
    return polygons_to_bitmask([np.asarray(p) for p in segmentation], SIZE, SIZE)


def of_colour(image: np.ndarray, label: int) -> np.ndarray:
    """The pixels that are nearer to the colour of a label than to grey."""
    away = [
        np.abs(image.astype(int) - np.asarray(c)).sum(axis=2) for c in (COLOURS[label], (GREY,) * 3)
    ]
    return away[0] < away[1]


def centres(annotations: list[Annotation]) -> np.ndarray:
    return np.array([np.reshape(a["segmentation"][0], (-1, 2)).mean(axis=0) for a in annotations])


@pytest.mark.parametrize("masks", ["polygon", "rle"])
def test_masks_and_boxes_go_with_the_pixels(masks: str) -> None:
    image, annotations = scene(APART, masks)
    before = copy.deepcopy(annotations)
    augment = InstaBoost(prob=1.0, max_shift=(0.3, 0.3), angle=(-20, 20), color_prob=0.0)
    seed(0)
    moved_by = []
    for _ in range(20):
        new_image, new = augment(image, annotations)
        assert [a["category_id"] for a in new] == [0, 1]
        for annotation in new:
            seen, mask = of_colour(new_image, annotation["category_id"]), mask_of(annotation)
            assert (seen & mask).sum() / (seen | mask).sum() > 0.93
            ys, xs = np.nonzero(mask)
            x, y, w, h = annotation["bbox"]
            found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert np.abs(found - [x, y, x + w, y + h]).max() <= 1.5
        # The gap shows the background.
        gap = ~np.any([cv2.dilate(mask_of(a).astype(np.uint8), np.ones((7, 7))) for a in new], 0)
        assert np.abs(new_image[gap].astype(int) - GREY).max() <= 2
        moved_by.append(np.abs(np.subtract(new[0]["bbox"], before[0]["bbox"])).max())
    assert annotations == before
    assert max(moved_by) > 5


@pytest.mark.parametrize(("degrees", "scale"), [(0.0, 1.2), (30.0, 1.0), (-10.0, 0.8)])
def test_the_similarity_is_opencvs(degrees: float, scale: float) -> None:
    image, annotations = scene(APART[:1])
    changes = {"scale": (scale, scale), "angle": (degrees, degrees)}
    _, (moved,) = InstaBoost(**{**STILL, **changes})(image, annotations)
    x, y, w, h = APART[0]
    affine = cv2.getRotationMatrix2D((x + w / 2, y + h / 2), -degrees, scale)
    points = np.reshape(annotations[0]["segmentation"][0], (-1, 2))
    expected = points @ affine[:, :2].T + affine[:, 2]
    np.testing.assert_allclose(np.reshape(moved["segmentation"][0], (-1, 2)), expected, atol=1e-9)
    corners = [*expected.min(axis=0), *(expected.max(axis=0) - expected.min(axis=0))]
    np.testing.assert_allclose(moved["bbox"], corners, atol=1e-9)


def test_without_a_move_the_image_stays() -> None:
    for masks in ("polygon", "rle"):
        image, annotations = scene(APART, masks)
        new_image, new = InstaBoost(**STILL)(image, annotations)
        mask = np.any([mask_of(a) for a in new], axis=0)
        inside = cv2.erode(mask.astype(np.uint8), np.ones((5, 5))).astype(bool)
        outside = ~cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))).astype(bool)
        for same in (inside, outside):
            assert (new_image[same] == image[same]).all()
        for old, moved in zip(annotations, new, strict=True):
            np.testing.assert_allclose(moved["bbox"], old["bbox"])
            assert (mask_of(old) == mask_of(moved)).all()


def test_what_overlaps_moves_together() -> None:
    boxes = ((40, 40, 20, 20), (55, 50, 20, 20), (90, 90, 15, 15))
    image, annotations = scene(boxes)
    seed(1)
    _, new = InstaBoost(**{**STILL, "max_shift": (0.2, 0.2)})(image, annotations)
    new.sort(key=lambda annotation: annotation["category_id"])
    shift = centres(new) - centres(annotations)
    np.testing.assert_allclose(shift[0], shift[1])
    assert np.abs(shift[2] - shift[0]).max() > 0.1
    # By a share of the extent of both.
    assert np.abs(shift[0]).max() <= 0.2 * 35


@pytest.mark.parametrize(
    ("box", "signs"),
    [
        ((40, 40, 30, 20), ({-1, 1}, {-1, 1})),
        ((0, 40, 30, 20), ({-1}, {-1, 1})),
        ((98, 40, 30, 20), ({1}, {-1, 1})),
        ((40, 5, 30, 20), ({-1, 1}, {-1})),
        ((40, 100, 30, 28), ({-1, 1}, {1})),
        ((0, 40, SIZE, 20), ({0}, {-1, 1})),
    ],
)
def test_range_of_the_shift(box: Box, signs: tuple[set[int], set[int]]) -> None:
    image, annotations = scene((box,))
    augment = InstaBoost(**{**STILL, "max_shift": (0.1, 0.2)})
    seed(2)
    shifts = np.array(
        [(centres(augment(image, annotations)[1]) - centres(annotations))[0] for _ in range(60)]
    )
    for axis, (share, extent) in enumerate(zip((0.1, 0.2), box[2:], strict=True)):
        assert set(np.sign(shifts[:, axis])) == signs[axis]
        reach = np.abs(shifts[:, axis]).max()
        assert reach == 0 if signs[axis] == {0} else 0.8 < reach / (share * extent) <= 1


def test_instances_that_leave_the_image_are_gone() -> None:
    augment = InstaBoost(**{**STILL, "max_shift": (40.0, 40.0)})
    seed(3)
    for masks in ("polygon", "rle"):
        image, annotations = scene(APART, masks)
        assert all(augment(image, annotations)[1] == [] for _ in range(3))


def test_crowds_and_empty_images_stay() -> None:
    image, annotations = scene(APART)
    annotations[1]["iscrowd"] = 1
    augment = InstaBoost(prob=1.0, max_shift=(0.3, 0.3), color_prob=0.0)
    new_image, new = augment(image, annotations)
    assert new[1] == annotations[1]
    assert new[0]["bbox"] != annotations[0]["bbox"]
    assert (new_image[of_colour(image, 1)] == COLOURS[1]).all()
    same, none = augment(image, [])
    assert none == []
    assert (same == image).all()


def test_probability() -> None:
    image, annotations = scene(APART)
    seed(4)
    augment = InstaBoost(prob=0.3, color_prob=0.0)
    changed = sum(augment(image, annotations)[0] is not image for _ in range(200))
    assert 40 <= changed <= 80  # 60 expected, 3 standard deviations
    image_after, same = InstaBoost(prob=0.0)(image, annotations)
    assert image_after is image
    assert same == annotations


def test_colours_change_alike_in_rgb_and_bgr() -> None:
    image, annotations = scene(APART)
    image = image + np.arange(SIZE, dtype=np.uint8)[:, None] % 50
    found = {}
    for image_format, order in (("RGB", 1), ("BGR", -1)):
        seed(5)
        augment = InstaBoost(**{**STILL, "color_prob": 1.0}, image_format=image_format)
        found[image_format] = augment(image[:, :, ::order], annotations)[0][:, :, ::order]
    assert (found["RGB"] == found["BGR"]).all()
    # Brightness and contrast of at least 1, as drawn: seldom is a picture left as it was.
    assert np.abs(found["RGB"].astype(int) - image).mean() > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prob": 1.5}, r"prob=1\.5"),
        ({"color_prob": -0.1}, r"color_prob=-0\.1"),
        ({"scale": (0, 1)}, r"scale=\(0, 1\)"),
        ({"scale": (1.2, 0.8)}, r"scale=\(1\.2, 0\.8\)"),
        ({"angle": (1, -1)}, r"angle=\(1, -1\)"),
        ({"max_shift": (0.1, -0.1)}, r"max_shift=\(0\.1, -0\.1\)"),
        ({"image_format": "L"}, "RGB or BGR, got 'L'"),
    ],
)
def test_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InstaBoost(**options)


def test_needs_masks() -> None:
    image, annotations = scene(APART)
    del annotations[1]["segmentation"]
    with pytest.raises(ValueError, match="needs a mask of every instance"):
        InstaBoost(prob=1.0)(image, annotations)
    with pytest.raises(ValueError, match="instance_augmentation needs use_instance_mask=True"):
        DatasetMapper(
            True, augmentations=[], image_format="RGB", instance_augmentation=InstaBoost()
        )


@pytest.mark.parametrize("is_train", [True, False])
def test_photographs_through_the_mapper(shared: Path, is_train: bool) -> None:
    data = shared / "data" / "coco_mini"
    records = load_coco_dataset(
        "insta_boost_mini",
        str(data / "annotations" / "instances_train.json"),
        str(data / "images" / "train"),
        num_classes=80,
        masks=True,
        filter_empty=True,
        role="train",
    )
    (config,) = (path for path in CONFIGS if path.stem == "htcpp_vit_adapter_l_beit_3x")
    options = load(config).dataloader.train.mapper
    options.update(augmentations=[], image_format="RGB", is_train=is_train, use_instance_mask=True)
    options.instance_augmentation.update(prob=1.0, image_format="RGB")
    plain = instantiate({**options, "instance_augmentation": None})
    mapper = instantiate(options)
    seed(6)
    for record in records[:3]:
        sample, before = mapper(record), plain(record)
        assert sample["image"].shape == before["image"].shape
        assert (sample["image"] != before["image"]).any() == is_train
        if not is_train:
            continue
        found, expected = sample["instances"], before["instances"]
        assert sorted(found.gt_classes.tolist()) == sorted(expected.gt_classes.tolist())
        boxes = found.gt_boxes.tensor
        height, width = found.image_size
        assert boxes.min() >= 0
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        around = found.gt_masks.get_bounding_boxes()
        around.clip(found.image_size)
        assert (boxes - around.tensor).abs().max() <= 1.5
