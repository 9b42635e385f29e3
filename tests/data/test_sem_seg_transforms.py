import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T

from vitadapter.data.sem_seg_transforms import (
    RandomResize,
    ResizeToFit,
    StretchToMultiple,
    resizes_at_ratios,
)


def image_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((512, 683), 512, 2048, (512, 683)),
        ((300, 400), 512, 2048, (512, 683)),
        ((100, 1000), 512, 2048, (205, 2048)),  # the longer side decides
        ((1000, 100), 512, None, (5120, 512)),
        ((375, 500), 520, 520, (390, 520)),
        ((1, 4000), 8, 16, (1, 16)),  # never no pixel
    ],
)
def test_resize_to_fit(
    size: tuple[int, int], short: int, long: int | None, expected: tuple[int, int]
) -> None:
    aug_input = T.AugInput(image_of(*size), sem_seg=np.zeros(size, np.int32))
    ResizeToFit(short, long)(aug_input)
    assert aug_input.image.shape[:2] == aug_input.sem_seg.shape == expected


def test_images_are_bilinear_and_labels_nearest() -> None:
    image = image_of(10, 14)
    labels = np.arange(140, dtype=np.int32).reshape(10, 14) * 1000
    aug_input = T.AugInput(image, sem_seg=labels)
    transform = ResizeToFit(25)(aug_input)
    expected = cv2.resize(image, (35, 25), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(aug_input.image, expected)
    rows, columns = np.arange(25) * 10 // 25, np.arange(35) * 14 // 35
    np.testing.assert_array_equal(aug_input.sem_seg, labels[rows][:, columns])
    np.testing.assert_allclose(transform.apply_coords(np.array([[14.0, 10.0]])), [[35, 25]])


def test_random_resize_keeps_within_its_range() -> None:
    """Ratios 0.5 .. 2 of (short 52, long 208), for an image that the shorter side limits."""
    np.random.seed(3)  # noqa: NPY002
    augmentation = RandomResize(52, 208, (0.5, 2.0))
    inputs = [T.AugInput(image_of(60, 80)) for _ in range(80)]
    for aug_input in inputs:
        augmentation(aug_input)
    shorter, longer = np.array([aug_input.image.shape[:2] for aug_input in inputs]).T
    assert shorter.min() >= 26
    assert shorter.max() <= 104
    assert shorter.min() < 35
    assert shorter.max() > 95
    assert abs(longer / shorter - 4 / 3).max() < 0.03


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 683), (512, 704)), ((1, 33), (32, 64)), ((64, 96), (64, 96))]
)
def test_stretch(size: tuple[int, int], expected: tuple[int, int]) -> None:
    aug_input = T.AugInput(image_of(*size))
    StretchToMultiple(32)(aug_input)
    assert aug_input.image.shape[:2] == expected


def test_what_fits_stays_as_it_is() -> None:
    aug_input = T.AugInput(image_of(64, 96))
    transforms = T.AugmentationList([ResizeToFit(64, 96), StretchToMultiple(32)])(aug_input)
    assert not [t for t in transforms.transforms if not isinstance(t, T.NoOpTransform)]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="1 <= short <= long is needed, got short=5, long=4"):
        ResizeToFit(5, 4)
    with pytest.raises(ValueError, match="ratio_range="):
        RandomResize(4, 5, (2.0, 1.0))
    with pytest.raises(ValueError, match="short=0"):
        RandomResize(0, 5)
    with pytest.raises(ValueError, match="divisor must be positive, got 0"):
        StretchToMultiple(0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"long": 400}, [(50, 100), (100, 200)]),
        ({"long": 160}, [(40, 80), (80, 160)]),  # the longer side decides
        ({"long": 400, "divisor": 32}, [(64, 128), (128, 224)]),
        ({"long": None}, [(50, 100), (100, 200)]),
        ({"long": None, "least_short": 80}, [(80, 160), (100, 200)]),
    ],
)
def test_scales(options: dict[str, int | None], expected: list[tuple[int, int]]) -> None:
    sizes = []
    for steps in resizes_at_ratios([0.5, 1.0], short=100, **options):
        given = T.AugInput(image_of(60, 120))
        T.AugmentationList(steps)(given)
        sizes.append(given.image.shape[:2])
    assert sizes == expected


def test_scales_below_a_pixel_are_refused() -> None:
    with pytest.raises(ValueError, match="1 <= short <= long"):
        resizes_at_ratios([0.5], short=100, long=40)
