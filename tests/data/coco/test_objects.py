"""Boxes and masks of single annotations, against pycocotools where it can bear them."""

import contextlib

import numpy as np
import pytest
from coco_samples import encode_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util

from vitadapter.data.coco.objects import checked_object, usable_mask

SIZE = (48, 64)
SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]


def _use(segmentation: object, size: tuple[int, int] = SIZE) -> tuple[object, list[str]]:
    notes: list[str] = []
    return usable_mask(segmentation, size, notes.append), notes


def _masks() -> st.SearchStrategy[np.ndarray]:
    seeds = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
    return seeds.map(
        lambda s: np.random.default_rng(s[2]).random(s[:2]) < np.random.default_rng(s[2]).random()
    )


def _runs(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[False], mask.T.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *changes, mask.size]).tolist()


@settings(max_examples=80, deadline=None)
@given(mask=_masks(), kind=st.sampled_from(["str", "bytes", "list", "unfinished"]))
def test_rle_of_every_kind(mask: np.ndarray, kind: str) -> None:
    encoded = encode_mask(mask)
    counts = {
        "str": encoded["counts"],
        "bytes": encoded["counts"].encode(),
        "list": _runs(mask),
        # As encoders write it that stop at the last foreground pixel.
        "unfinished": _runs(mask)[: len(_runs(mask)) // 2 * 2],
    }[kind]
    used, notes = _use({"size": list(mask.shape), "counts": counts}, mask.shape)
    if not mask.any():
        assert used is None
        return
    np.testing.assert_array_equal(mask_util.decode(used), mask)
    assert len(notes) == (kind == "unfinished" and len(_runs(mask)) % 2)


@settings(max_examples=150, deadline=None)
@given(
    counts=st.one_of(
        st.lists(st.integers(-3, 4000), max_size=6),
        st.lists(st.one_of(st.integers(), st.floats(), st.none(), st.booleans()), max_size=3),
        st.text(max_size=8),
        st.binary(max_size=8),
        st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12),
        st.none(),
        st.integers(),
    )
)
def test_counts_that_are_none(counts: object) -> None:
    with contextlib.suppress(ValueError):  # of any other kind is an error of the test
        used, _ = _use({"size": list(SIZE), "counts": counts})
        if used is None:
            return
        assert 0 < mask_util.area(used) <= SIZE[0] * SIZE[1]
        assert mask_util.area(used) == mask_util.decode(used).sum()


@pytest.mark.parametrize("size", [None, 5, [48], [64, 48], ["48", "64"], [48.5, 64]])
def test_rle_of_another_size(size: object) -> None:
    with pytest.raises(ValueError, match=r"its image has \[48, 64\]"):
        _use({"size": size, "counts": [10, 5, 48 * 64 - 15]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 641, -1e9, 10**400])
@pytest.mark.parametrize("position", range(8))
def test_polygons_that_pycocotools_cannot_bear(value: float, position: int) -> None:
    polygon = [*SQUARE[:position], value, *SQUARE[position + 1 :]]
    used, (note,) = _use([SQUARE, polygon])
    assert used == [SQUARE]
    assert "10 times the longer side" in note
    assert _use([polygon])[0] is None


def test_polygons_a_little_outside_stay_as_they_are() -> None:
    polygon = [-5.5, -3, 70, -3, 640, 50, -5.5, 480]
    assert _use([polygon]) == ([polygon], [])


@pytest.mark.parametrize("polygon", [[], [1, 2], [1, 2, 3, 4], [*SQUARE, 3]])
def test_polygons_that_are_none(polygon: list[float]) -> None:
    used, (note,) = _use([polygon, SQUARE])
    assert used == [SQUARE]
    assert "fewer than three points" in note


@pytest.mark.parametrize(
    "polygon", [[5] * 6, [1, 1, 9, 9, 20, 20], [70, 1, 90, 1, 90, 9], [1, -9, 9, -9, 9, -1]]
)
def test_polygons_without_a_pixel(polygon: list[float]) -> None:
    assert mask_util.area(mask_util.frPyObjects([polygon], *SIZE)).sum() == 0
    used, (note,) = _use([polygon])
    assert used is None
    assert "without a pixel" in note


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(-0.5, 0.5), min_size=6, max_size=12),
    st.tuples(st.floats(0, 40), st.floats(0, 40), st.floats(0.01, 20), st.floats(0.01, 20)),
)
def test_masks_are_kept_where_they_have_a_pixel(
    points: list[float], place: tuple[float, float, float, float]
) -> None:
    x, y, width, height = place
    pairs = zip(points[0::2], points[1::2], strict=False)
    polygon = [value for px, py in pairs for value in (x + px * width, y + py * height)]
    has_pixels = mask_util.area(mask_util.frPyObjects([polygon], 32, 40)).any()
    assert (usable_mask([polygon], (32, 40), lambda _: None) is not None) == has_pixels


def test_crossed_polygons_have_pixels() -> None:
    crossed = [[10, 10, 30, 30, 30, 10, 10, 30]]
    assert _use(crossed) == (crossed, [])


def test_arrays_are_polygons() -> None:
    points = np.array(SQUARE, dtype=np.float32).reshape(-1, 2)
    assert _use([points])[0] == [SQUARE]


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ([1, 1, 5, 5], True),
        ([-3.5, -3, 5, 5], True),
        ([60, 40, 500, 600], True),
        ([64, 1, 5, 5], False),
        ([-5, 1, 5, 5], False),
        ([1, 48, 5, 5], False),
        ([1, 1, 0, 5], False),
        ([1, 1, 5, -5], False),
        ([1, 1, float("nan"), 5], False),
        ([-1e9, -1e9, 2e9, 2e9], False),
        ([1, 1, 10**400, 5], False),
    ],
)
def test_boxes_have_an_area_in_the_image(box: list[float], kept: bool) -> None:
    notes: list[str] = []
    found = checked_object({"bbox": box}, SIZE, notes.append)
    assert (found is not None) == kept
    assert len(notes) == (not kept)
    if kept:
        assert found["bbox"] == box
        assert found["area"] == box[2] * box[3]
