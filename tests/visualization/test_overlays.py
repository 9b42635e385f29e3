import numpy as np
import pytest

from vitadapter.visualization.overlays import (
    Objects,
    Palette,
    draw_label_map,
    draw_legend,
    draw_objects,
    fitted,
    shortened,
    text_size,
    text_width,
)
from vitadapter.visualization.style import class_color

PALETTE = Palette(["cat", "dining table", "größe"])


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def is_color(pixels: np.ndarray, number: int) -> np.ndarray:
    return (pixels == PALETTE.color(number)).all(axis=-1)


def test_classes_have_colours_of_their_own() -> None:
    colors = np.array([class_color(number) for number in range(150)])
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    assert distances[np.triu_indices(150, 1)].min() > 0.02
    assert distances[:12, :12][np.triu_indices(12, 1)].min() > 0.2
    assert class_color(1203) == class_color(1203 % 150)
    assert Palette().name(7) == "class 7"


def test_masks_are_tinted_and_outlined_without_their_holes() -> None:
    image = grey(100, 120)
    mask = rectangle((100, 120), (20, 40, 90, 90))
    mask[55:75, 40:70] = False
    box = np.array([[20.0, 40.0, 90.0, 90.0]])
    drawn = draw_objects(image, Objects([1], box, [mask], [""]), PALETTE)
    expected = 0.55 * 128 + 0.45 * np.array(PALETTE.color(1))
    np.testing.assert_allclose(drawn[80, 30:60], np.tile(expected, (30, 1)), atol=1)
    assert (drawn[60:70, 45:65] == 128).all()  # in the hole
    assert (drawn[:38] == 128).all()
    assert is_color(drawn[41:89, 20], 1).all()
    assert (image == 128).all()


def test_small_objects_are_drawn_over_large_ones() -> None:
    masks = [rectangle((80, 80), (30, 30, 40, 40)), np.ones((80, 80), dtype=bool)]
    boxes = np.array([[30, 30, 40, 40], [0, 0, 80, 80]])
    for order in ([0, 1], [1, 0]):
        objects = Objects(order, boxes[order], [masks[i] for i in order], ["", ""])
        assert is_color(draw_objects(grey(80, 80), objects, PALETTE)[30, 30:40], 0).all()


@pytest.mark.parametrize("box", [(-1e9, -1e9, 1e9, 1e9), (5, 5, 5, 5), (200, 200, 300, 300)])
def test_any_box_can_be_drawn(box: tuple[float, ...]) -> None:
    drawn = draw_objects(grey(60, 50), Objects([0], np.array([box]), None, ["cat"]), PALETTE)
    assert drawn.shape == (60, 50, 3)


def test_no_objects() -> None:
    drawn = draw_objects(grey(60, 50), Objects([], np.zeros((0, 4)), None, []), PALETTE)
    np.testing.assert_array_equal(drawn, grey(60, 50))


def test_labels_do_not_cover_each_other() -> None:
    """Two objects in one place have both labels; where there is no place, the first ones have."""
    boxes = np.array([[50, 60, 150, 120]] * 2)
    both = draw_objects(grey(200, 300), Objects([0, 1], boxes, None, ["one", "two"]), PALETTE)
    # Right of the box's own line and left of the text.
    heights = [is_color(both[:, 51], number).sum() for number in (0, 1)]
    assert min(heights) >= text_size(both) + 4
    many = np.array([[50, 60, 150, 120]] * 50)
    kinds = [0] * 49 + [1]
    crowded = draw_objects(
        grey(200, 300), Objects(kinds, many, None, ["cat"] * 49 + ["dog"]), PALETTE
    )
    assert is_color(crowded, 0).sum() > 300
    assert is_color(crowded, 1).sum() < 400  # its box alone


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 200), (30, 40), (1, 1)])
def test_text_fits_small_images(height: int, width: int) -> None:
    """A label leaves more than half of the height free, or is left out."""
    box = np.array([[0, 0, width, height]])
    label = "a class with a very long name 0.98"
    drawn = draw_objects(grey(height, width), Objects([0], box, None, [label]), PALETTE)
    filled = (drawn != 128).any(axis=-1)
    filled[[0, -1]] = filled[:, [0, -1]] = False  # the box
    rows = int((filled.sum(axis=1) > 0).sum())
    assert rows <= 0.4 * height
    assert (rows > 0) == (height > 40)


def test_text_is_cut_to_its_width() -> None:
    for text in ("dining table 0.98", "größe", "x\ny", "類別"):
        for width in (1, 10, 40, 75, 500):
            kept = shortened(text, width, 12)
            assert text_width(kept, 12) <= width
            assert kept == "" or kept == " ".join(text.split()) or kept.endswith("…")
    assert shortened("dining table", 500, 12) == "dining table"


def test_label_maps_leave_pixels_without_a_class() -> None:
    labels = np.full((20, 30), -1)
    labels[5:10, :15], labels[5:10, 15:] = 0, 2
    drawn = draw_label_map(grey(20, 30), labels, PALETTE)
    assert (drawn[labels < 0] == 128).all()
    for number in (0, 2):
        expected = 0.4 * 128 + 0.6 * np.array(PALETTE.color(number))
        np.testing.assert_allclose(drawn[labels == number] - expected, 0, atol=1)
    assert (draw_label_map(grey(20, 30), np.full((20, 30), -1), PALETTE) == 128).all()


def test_white_lines_are_between_segments_of_one_class() -> None:
    labels = np.zeros((20, 30), dtype=int)
    ids = np.where(np.arange(30) < 12, 1, 2) * np.ones((20, 1), dtype=int)
    drawn = draw_label_map(grey(20, 30), labels, PALETTE, ids)
    white = (drawn == 255).all(axis=-1)
    assert white[:, 11].all()
    assert white.sum() == 20


@pytest.mark.parametrize("width", [30, 120, 700])
def test_the_legend_names_every_class_within_its_width(width: int) -> None:
    palette = Palette([f"class number {n}" for n in range(30)])
    legend = draw_legend(range(30), palette, width, 12)
    assert legend.shape[1:] == (width, 3)
    for number in range(30):
        found = (legend == palette.color(number)).all(axis=-1)
        assert found.sum() >= 9 * 9
    assert (legend[:, -1] == 255).all()
    assert draw_legend(range(30), palette, width, 12, height=40).shape == (40, width, 3)


def test_images_are_fitted_to_a_side() -> None:
    assert fitted(grey(50, 100), 200).shape == (100, 200, 3)
    assert fitted(grey(1, 1000), 100).shape == (1, 100, 3)
