"""Panoptic quality against sets of pixels, counted one by one, and cases worked out by hand."""

import numpy as np
import pytest

from vitadapter.evaluation.panoptic_quality import average_quality, count_matches, quality_of

CLASSES = 3
Segments = list[dict[str, int]]


def segment(id_: int, category: int, iscrowd: int = 0) -> dict[str, int]:
    return {"id": id_, "category_id": category, "iscrowd": iscrowd}


def expected_counts(
    truth: np.ndarray, true_segments: Segments, guess: np.ndarray, guessed: Segments
) -> np.ndarray:
    """By the definition: every pair of segments is compared as sets of pixels."""
    pixels = [(y, x) for y in range(truth.shape[0]) for x in range(truth.shape[1])]
    void = {p for p in pixels if truth[p] == 0}
    area = {s["id"]: {p for p in pixels if truth[p] == s["id"]} for s in true_segments}
    guessed_area = {s["id"]: {p for p in pixels if guess[p] == s["id"]} for s in guessed}
    counts = np.zeros((CLASSES, 4))
    partners = set()
    for true in (s for s in true_segments if not s["iscrowd"]):
        found = False
        for other in (s for s in guessed if s["category_id"] == true["category_id"]):
            a, b = area[true["id"]], guessed_area[other["id"]]
            iou = len(a & b) / max(len(a | (b - void)), 1)
            if iou > 0.5:
                counts[true["category_id"]] += [1, 0, 0, iou]
                partners.add(other["id"])
                found = True
        counts[true["category_id"], 2] += not found
    for other in (s for s in guessed if s["id"] not in partners):
        b = guessed_area[other["id"]]
        crowds = [s for s in true_segments if s["iscrowd"]]
        same = [area[s["id"]] for s in crowds if s["category_id"] == other["category_id"]]
        ignored = void | (same[-1] if same else set())
        counts[other["category_id"], 1] += len(b & ignored) <= len(b) / 2
    return counts


def _drawn(rng: np.random.Generator, number: int, first: int) -> tuple[np.ndarray, Segments]:
    """A map of rectangles, later ones over earlier ones, and of void."""
    ids = np.zeros((10, 12), dtype=np.int64)
    for id_ in range(first, first + number):
        y, x = rng.integers(0, 8), rng.integers(0, 10)
        ids[y : y + rng.integers(2, 8), x : x + rng.integers(2, 9)] = id_
    shown = np.unique(ids[ids > 0]).tolist()
    return ids, [segment(i, int(rng.integers(0, CLASSES)), int(rng.random() < 0.2)) for i in shown]


@pytest.mark.parametrize("seed", range(40))
def test_random_maps(seed: int) -> None:
    """Some predictions are the truth with some segments redrawn, so that there are matches."""
    rng = np.random.default_rng(seed)
    truth, true_segments = _drawn(rng, 7, first=1)
    guess, guessed = _drawn(rng, 4, first=70000)
    if seed % 2:
        taken = rng.random(truth.shape) < 0.85
        guess = np.where((guess == 0) | taken, truth, guess)
        shown = set(np.unique(guess).tolist())
        guessed = [s for s in (*true_segments, *guessed) if s["id"] in shown]
    counts = count_matches(truth, true_segments, guess, guessed, CLASSES)
    np.testing.assert_allclose(counts, expected_counts(truth, true_segments, guess, guessed))
    if seed % 2:
        assert counts[:, 0].sum() > 0


def row(*lengths: tuple[int, int]) -> np.ndarray:
    """A map of one row from (id, length) pairs."""
    return np.concatenate([np.full((1, length), id_) for id_, length in lengths], axis=1)


# name: truth, its segments, prediction, its segments, counts of class 0
CASES = {
    "equal": (row((1, 4)), [segment(1, 0)], row((9, 4)), [segment(9, 0)], [1, 0, 0, 1]),
    "no segment at all": (row((0, 4)), [], row((0, 4)), [], [0, 0, 0, 0]),
    "missed": (row((1, 4)), [segment(1, 0)], row((0, 4)), [], [0, 0, 1, 0]),
    "listed but without a pixel": (
        row((2, 4)),
        [segment(2, 1), segment(1, 0)],
        row((0, 4)),
        [],
        [0, 0, 1, 0],
    ),
    "another class": (row((1, 4)), [segment(1, 1)], row((1, 4)), [segment(1, 0)], [0, 1, 0, 0]),
    "half is not enough": (
        row((1, 2), (2, 2)),
        [segment(1, 0), segment(2, 1)],
        row((5, 4)),
        [segment(5, 0)],
        [0, 1, 1, 0],
    ),
    "more than half": (
        row((1, 3), (2, 2)),
        [segment(1, 0), segment(2, 1)],
        row((5, 5)),
        [segment(5, 0)],
        [1, 0, 0, 0.6],
    ),
    "void counts in no union": (
        row((1, 2), (0, 9)),
        [segment(1, 0)],
        row((5, 11)),
        [segment(5, 0)],
        [1, 0, 0, 1],
    ),
    "half void is a false positive": (
        row((2, 2), (0, 2)),
        [segment(2, 1)],
        row((5, 4)),
        [segment(5, 0)],
        [0, 1, 0, 0],
    ),
    "more than half void is none": (
        row((2, 2), (0, 3)),
        [segment(2, 1)],
        row((5, 5)),
        [segment(5, 0)],
        [0, 0, 0, 0],
    ),
    "a crowd is neither matched nor missed": (
        row((1, 4)),
        [segment(1, 0, 1)],
        row((5, 4)),
        [segment(5, 0)],
        [0, 0, 0, 0],
    ),
    "a crowd that nothing is predicted in": (
        row((1, 4)),
        [segment(1, 0, 1)],
        row((0, 4)),
        [],
        [0, 0, 0, 0],
    ),
    "a crowd of another class": (
        row((1, 4)),
        [segment(1, 1, 1)],
        row((5, 4)),
        [segment(5, 0)],
        [0, 1, 0, 0],
    ),
    "void and crowd together": (
        row((1, 2), (0, 1), (2, 2)),
        [segment(1, 0, 1), segment(2, 1)],
        row((5, 5)),
        [segment(5, 0)],
        [0, 0, 0, 0],
    ),
    "of two crowds the last": (
        row((1, 3), (2, 1)),
        [segment(1, 0, 1), segment(2, 0, 1)],
        row((5, 4)),
        [segment(5, 0)],
        [0, 1, 0, 0],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name: str) -> None:
    truth, true_segments, guess, guessed, expected = CASES[name]
    counts = count_matches(truth, true_segments, guess, guessed, CLASSES)
    assert counts[0].tolist() == pytest.approx(expected)
    np.testing.assert_allclose(counts, expected_counts(truth, true_segments, guess, guessed))


def test_qualities_of_classes() -> None:
    # Of the first class 2 matches with IoUs of 0.9 and 0.6, 1 false positive and 3 missed.
    counts = np.array([[2, 1, 3, 1.5], [0, 2, 0, 0], [0, 0, 0, 0]], dtype=float)
    qualities = quality_of(counts)
    np.testing.assert_allclose(qualities[0], [1.5 / 4, 0.75, 0.5])
    np.testing.assert_allclose(qualities[1], [0, 0, 0])
    assert np.isnan(qualities[2]).all()
    average = average_quality(qualities)
    assert average == pytest.approx((1.5 / 8, 0.375, 0.25, 2))
    assert average_quality(qualities[2:]) is None
    assert average_quality(qualities[:0]) is None


TRUTH = row((1, 4))


@pytest.mark.parametrize(
    ("guess", "segments", "message"),
    [
        (row((5, 3)), [segment(5, 0)], r"truth's \(height, width\) \(1, 4\), got \(1, 3\)"),
        (row((5, 4)), [], r"list each segment of the map once, got the ids \[\] .* \[5\]"),
        (row((5, 4)), [segment(5, 0), segment(6, 0)], r"the ids \[5, 6\] for a map with \[5\]"),
        (row((5, 4)), [segment(5, 0), segment(5, 1)], r"the ids \[5, 5\]"),
        (row((5, 4)), [segment(5, 3)], r"category_id .* in \[0, 3\), got \[3\]"),
    ],
)
def test_predictions_that_contradict_themselves(
    guess: np.ndarray, segments: Segments, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        count_matches(TRUTH, [segment(1, 0)], guess, segments, CLASSES)
