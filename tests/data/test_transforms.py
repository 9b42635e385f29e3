import cv2
import numpy as np
import pytest
from detectron2.config import LazyCall, instantiate
from detectron2.data import transforms as T

from vitadapter.data.transforms import (
    PadToSize,
    RandomChoice,
    RandomResize,
    ResizeToFit,
    StretchToMultiple,
    augment,
    resizes_at_ratios,
)


def test_each_branch_is_drawn_equally_often() -> None:
    choice = RandomChoice([[T.Resize((2, 2))], [T.Resize((3, 3))], []])
    np.random.seed(0)  # noqa: NPY002
    sides = []
    for _ in range(600):
        aug_input = T.AugInput(np.zeros((5, 5, 3), dtype=np.uint8))
        choice(aug_input)
        sides.append(aug_input.image.shape[0])
    counts = [sides.count(side) for side in (2, 3, 5)]
    assert sum(counts) == 600
    assert all(160 < count < 240 for count in counts)  # 3.5 standard deviations


@pytest.mark.parametrize("seed", range(6))
def test_image_boxes_and_masks_move_together(seed: int) -> None:
    """The paper's 3x+MS policy at a tenth of its size, on a marked rectangle."""
    resize = T.ResizeShortestEdge((48, 56, 64, 80), max_size=133, sample_style="choice")
    policy = T.AugmentationList(
        [
            T.RandomFlip(),
            RandomChoice(
                [
                    [resize],
                    [
                        T.ResizeShortestEdge((40, 50, 60), 133, "choice"),
                        T.RandomCrop("absolute_range", (38, 60)),
                        resize,
                    ],
                ]
            ),
            T.RandomCrop("absolute", (102, 102)),
        ]
    )
    np.random.seed(seed)  # noqa: NPY002
    x0, y0, x1, y1 = 32, 24, 96, 72
    image = np.zeros((96, 128, 3), dtype=np.uint8)
    image[y0:y1, x0:x1] = 255
    mask = image[:, :, 0] // 255
    aug_input = T.AugInput(image.copy())
    transforms = policy(aug_input)

    moved_mask = transforms.apply_segmentation(mask.copy())
    assert moved_mask.shape == aug_input.image.shape[:2]
    bright = aug_input.image[:, :, 0] > 127
    assert (bright != moved_mask.astype(bool)).mean() < 0.08  # a border of one pixel may differ

    box = transforms.apply_box(np.array([[x0, y0, x1, y1]], dtype=np.float64))[0]
    height, width = moved_mask.shape
    box = np.clip(box, 0, [width, height, width, height])
    rows, columns = np.nonzero(moved_mask)
    tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(box, tight, atol=1.5)


def test_works_in_a_config() -> None:
    config = LazyCall(RandomChoice)(
        branches=[[LazyCall(T.Resize)(shape=(2, 2))], [LazyCall(T.Resize)(shape=(2, 2))]]
    )
    aug_input = T.AugInput(np.zeros((5, 5, 3), dtype=np.uint8))
    T.AugmentationList([instantiate(config)])(aug_input)
    assert aug_input.image.shape == (2, 2, 3)


def test_needs_a_branch() -> None:
    with pytest.raises(ValueError, match="at least one branch"):
        RandomChoice([])


def test_padding_is_the_models_zero_and_no_mask() -> None:
    aug_input = T.AugInput(np.full((3, 4, 3), 9, dtype=np.uint8))
    transforms = T.AugmentationList([PadToSize((5, 6), [123.675, 116.28, 103.53])])(aug_input)
    assert aug_input.image.shape == (5, 6, 3)
    assert aug_input.image.dtype == np.uint8
    assert (aug_input.image[:3, :4] == 9).all()
    outside = np.ones((5, 6), dtype=bool)
    outside[:3, :4] = False
    assert (aug_input.image[outside] == [124, 116, 104]).all()
    padded = transforms.apply_segmentation(np.ones((3, 4), dtype=np.uint8))
    np.testing.assert_array_equal(padded, ~outside)
    points = np.array([[1.0, 2.0]])
    np.testing.assert_array_equal(transforms.apply_coords(points.copy()), points)


def test_padding_leaves_a_larger_image() -> None:
    aug_input = T.AugInput(np.zeros((7, 2, 3), dtype=np.uint8))
    T.AugmentationList([PadToSize((5, 6), [0.0, 0.0, 0.0], seg_pad_value=255)])(aug_input)
    assert aug_input.image.shape == (7, 6, 3)


def test_padding_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"positive sides.*\(0, 5\)"):
        PadToSize((0, 5), [0.0, 0.0, 0.0])


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


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize(
    "view",
    [np.s_[:], np.s_[:, ::-1], np.s_[::-1], np.s_[2:7, 8:2:-1], np.s_[:, ::2], np.s_[:, :1]],
)
def test_views_are_stacked_as_numpy_does(view: object, channels: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 12, channels), dtype=np.uint8)
    image.setflags(write=False)  # as Pillow's are
    pixels = augment(T.AugmentationList([]), image[view]).image
    assert pixels.is_contiguous()
    np.testing.assert_array_equal(pixels.numpy(), image[view].transpose(2, 0, 1))
