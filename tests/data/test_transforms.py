import numpy as np
import pytest
from detectron2.config import LazyCall, instantiate
from detectron2.data import transforms as T

from vitadapter.data.transforms import PadToSize, RandomChoice


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
