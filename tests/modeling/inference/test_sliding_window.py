import weakref

import pytest
import torch
from torch import Tensor

from vitadapter.modeling.inference import SlidingWindow, window_starts


@pytest.mark.parametrize(
    ("length", "crop", "stride", "starts"),
    [
        (512, 512, 341, [0]),
        (100, 512, 341, [0]),
        (513, 512, 341, [0, 1]),
        (853, 512, 341, [0, 341]),
        (854, 512, 341, [0, 341, 342]),
        (2048, 512, 341, [0, 341, 682, 1023, 1364, 1536]),
    ],
)
def test_windows_start_at_multiples_and_the_last_at_the_border(
    length: int, crop: int, stride: int, starts: list[int]
) -> None:
    assert window_starts(length, crop, stride) == starts


def position_dependent(images: Tensor) -> Tensor:
    """Logits that differ by where in a window a pixel lies."""
    rows = torch.arange(images.shape[-2], dtype=images.dtype)[:, None]
    columns = torch.arange(images.shape[-1], dtype=images.dtype)
    return torch.stack([images[:, 0] * (1 + rows), images[:, 1] - columns, images[:, 2]], dim=1)


def averaged_by_pixel(images: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Every window placed with the official formula, one pixel at a time."""
    _, _, height, width = images.shape
    total, counts = torch.zeros_like(images), torch.zeros_like(images)
    rows = max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1
    columns = max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1
    for row in range(rows):
        for column in range(columns):
            y2 = min(row * stride[0] + crop[0], height)
            x2 = min(column * stride[1] + crop[1], width)
            y1, x1 = max(y2 - crop[0], 0), max(x2 - crop[1], 0)
            total[:, :, y1:y2, x1:x2] += position_dependent(images[:, :, y1:y2, x1:x2])
            counts[:, :, y1:y2, x1:x2] += 1
    return total / counts


@pytest.mark.parametrize("size", [(9, 9), (8, 21), (5, 30), (17, 4), (3, 3)])
@pytest.mark.parametrize(
    ("crop", "stride"), [((8, 8), (5, 5)), ((6, 10), (6, 3)), ((4, 4), (1, 4))]
)
@pytest.mark.parametrize("windows_per_batch", [1, 3])
def test_overlaps_are_averaged(
    size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int], windows_per_batch: int
) -> None:
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    slide = SlidingWindow(crop, stride, windows_per_batch=windows_per_batch)
    found = slide(position_dependent, images)
    torch.testing.assert_close(found, averaged_by_pixel(images, crop, stride))


def test_logits_of_windows_are_gone_when_the_next_are_predicted() -> None:
    made: list[weakref.ref[Tensor]] = []

    def predict(images: Tensor) -> Tensor:
        assert all(logits() is None for logits in made)
        logits = position_dependent(images)
        made.append(weakref.ref(logits))
        return logits

    SlidingWindow((8, 8), (8, 8), windows_per_batch=2)(predict, torch.randn(1, 3, 16, 24))
    assert len(made) == 3


def test_a_small_image_is_padded_to_a_window() -> None:
    seen = []

    def predict(images: Tensor) -> Tensor:
        seen.append(images)
        return images

    images = torch.randn(1, 3, 5, 9)
    found = SlidingWindow((8, 8), (4, 4), pad_to_crop=True)(predict, images)
    assert [tuple(x.shape[-2:]) for x in seen] == [(8, 8), (8, 8)]
    assert not seen[0][..., 5:, :].any()
    torch.testing.assert_close(found, images)


def test_half_precision_is_averaged_in_float32() -> None:
    logits = iter(torch.tensor([2048.0, 2050.0, 2050.0], dtype=torch.float16))

    def predict(images: Tensor) -> Tensor:
        return next(logits).expand(images.shape)

    found = SlidingWindow((4, 4), (4, 2))(predict, torch.zeros(1, 1, 4, 8))
    assert found.dtype == torch.float32
    # The sum 4098 does not exist in half precision.
    assert found[0, 0, 0].tolist() == [2048, 2048, 2049, 2049, 2050, 2050, 2050, 2050]


@pytest.mark.parametrize(
    ("crop", "stride", "batch"),
    [
        ((8, 8), (9, 8), 1),
        ((8, 8), (0, 4), 1),
        ((8, 8), (4, 4), 0),
        ((8, 8), (4,), 1),
        ((8,), (4,), 1),
        ((8, 8, 8), (4, 4, 4), 1),
    ],
)
def test_gaps_are_refused(crop: tuple[int, ...], stride: tuple[int, ...], batch: int) -> None:
    with pytest.raises(ValueError, match="0 < stride <= crop_size"):
        SlidingWindow(crop, stride, windows_per_batch=batch)
