"""Sheets of pictures with captions."""

import numpy as np

from vitadapter.visualization.panels import Panel, arrange

GREY = 128
CAPTION, GAP, GROUP_GAP = 24, 6, 20


def panel(height: int, width: int, caption: str = "a") -> Panel:
    return Panel(np.full((height, width, 3), GREY, np.uint8), caption)


def is_picture(sheet: np.ndarray) -> np.ndarray:
    return (sheet == GREY).all(axis=-1)


def test_pictures_of_any_size_have_their_places() -> None:
    groups = [[panel(20, 30), panel(20, 40)], [panel(50, 25), panel(10, 35)], [panel(20, 30)]]
    sheet = arrange(groups, columns=2)
    width = 2 * (30 + GAP + 40) + GROUP_GAP + 2 * GAP
    assert sheet.shape == (CAPTION + 50 + GAP + CAPTION + 20 + GAP, width, 3)
    assert sheet.dtype == np.uint8
    for top, left, height, across in (
        (CAPTION, GAP, 20, 30),
        (CAPTION, 2 * GAP + 30, 20, 40),
        (CAPTION, 2 * GAP + 70 + GROUP_GAP, 50, 25),
        (2 * CAPTION + 50 + GAP, GAP, 20, 30),
    ):
        assert is_picture(sheet[top : top + height, left : left + across]).all()
        assert not is_picture(sheet[top : top + height, left + across]).any()
    # Above each picture is a caption, and none where there is no picture.
    captions = sheet[:CAPTION]
    assert (captions[:, GAP : GAP + 30] < GREY).any()
    assert (sheet[CAPTION + 50 + GAP :, width // 2 :] == 255).all()


def test_long_captions_are_cut() -> None:
    sheet = arrange([[panel(20, 60, "a very long caption"), panel(20, 60, "")]])
    beside = sheet[:CAPTION, GAP + 60 :]
    assert (sheet[:CAPTION, GAP : GAP + 60] < GREY).any()
    assert (beside == 255).all()
