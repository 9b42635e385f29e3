"""The evaluator against a confusion matrix counted pixel by pixel."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sem_seg_samples import some_labels, write_labels, write_pairs

from vitadapter.evaluation.sem_seg import sem_seg_evaluator

CLASSES = 4  # of which the last does not occur
NAMES = ["sky", "road", "car", "dragon"]


def scores_of(labels: np.ndarray) -> dict[str, torch.Tensor]:
    return {"sem_seg": torch.nn.functional.one_hot(torch.as_tensor(labels), CLASSES).movedim(-1, 0)}


def count(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Pixels (K, K) by true and predicted class, one at a time."""
    matrix = np.zeros((CLASSES, CLASSES), dtype=int)
    for truth, predicted in pairs:
        for true, guess in zip(truth.reshape(-1), predicted.reshape(-1), strict=True):
            if true != 255:
                matrix[true, guess] += 1
    return matrix


@pytest.fixture(params=[False, True], ids=["plain", "shifted"])
def evaluated(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict, np.ndarray, Path]:
    """Metrics, confusion matrix by pixel, and the folder written to."""
    shift = request.param
    truths = {name: some_labels(seed) for seed, name in enumerate("abc")}
    stored = {n: np.where(t == 255, 0, t + 1).astype(np.uint8) for n, t in truths.items()}
    images, labels = write_pairs(tmp_path, stored if shift else truths)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    evaluator = sem_seg_evaluator(
        "own",
        str(images),
        str(labels),
        str(tmp_path / "out"),
        num_classes=CLASSES,
        class_names=str(tmp_path / "classes.txt"),
        reduce_zero_label=shift,
        boundary_iou=True,
    )
    evaluator.reset()
    rng = np.random.default_rng(5)
    pairs = []
    for name, truth in truths.items():
        guess = np.where(rng.random(truth.shape) < 0.3, rng.integers(0, CLASSES, truth.shape), 1)
        guess = np.where((rng.random(truth.shape) < 0.5) & (truth != 255), truth, guess)
        pairs.append((truth, guess))
        evaluator.process([{"file_name": str(images / f"{name}.jpg")}], [scores_of(guess)])
    return evaluator.evaluate()["sem_seg"], count(pairs), tmp_path / "out"


def test_metrics(evaluated: tuple[dict, np.ndarray, Path]) -> None:
    metrics, matrix, _ = evaluated
    # Detectron2 counts a class that no label map has in no metric: not where it is predicted.
    seen = matrix[:3, :3]
    correct, truth, guess = seen.diagonal(), seen.sum(1), seen.sum(0)
    truth = matrix[:3].sum(1)
    iou = 100 * correct / (truth + guess - correct)
    assert metrics["mIoU"] == pytest.approx(iou.mean())
    assert metrics["mACC"] == pytest.approx(100 * (correct / truth).mean())
    assert metrics["pACC"] == pytest.approx(100 * correct.sum() / truth.sum())
    for name, value in zip(NAMES, iou, strict=False):
        assert metrics[f"IoU-{name}"] == pytest.approx(value)


def test_absent_classes_give_no_nan(evaluated: tuple[dict, np.ndarray, Path]) -> None:
    metrics, _, _ = evaluated
    assert not [name for name, value in metrics.items() if math.isnan(value)]
    assert "IoU-dragon" not in metrics


def test_written_report(evaluated: tuple[dict, np.ndarray, Path]) -> None:
    metrics, matrix, folder = evaluated
    table = (folder / "sem_seg_results.md").read_text()
    assert f"{metrics['mIoU']:.2f}" in table.splitlines()[2]
    (row,) = (line for line in table.splitlines() if line.startswith("| road"))
    assert f"{metrics['IoU-road']:.2f}" in row
    assert row.rstrip(" |").endswith(str(matrix[1].sum()))
    (row,) = (line for line in table.splitlines() if line.startswith("| dragon"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["-", "-", "-", "0"]
    stored = json.loads((folder / "confusion_matrix.json").read_text())
    np.testing.assert_array_equal(np.array(stored["predicted_by_true"]).T, matrix)
    with Image.open(folder / "confusion_matrix.png") as picture:
        assert min(picture.size) > 300


def make_evaluator(tmp_path: Path, labels: np.ndarray) -> tuple[object, dict[str, object]]:
    images, folder = write_pairs(tmp_path, {"a": labels})
    evaluator = sem_seg_evaluator("own", str(images), str(folder), num_classes=CLASSES)
    evaluator.reset()
    return evaluator, {"file_name": str(images / "a.jpg")}


def test_nothing_labelled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.full((8, 8), 255, np.uint8)
    evaluator, record = make_evaluator(tmp_path, labels)
    evaluator.process([record], [scores_of(np.zeros((8, 8), int))])
    assert evaluator.evaluate() == {"sem_seg": {}}
    assert "no pixel of the test data has a label" in caplog.text


def test_wrong_predictions_and_labels(tmp_path: Path) -> None:
    evaluator, record = make_evaluator(tmp_path, some_labels())
    with pytest.raises(ValueError, match=r"must be 4 maps of .* \(24, 32\), got \(4, 24, 31\)"):
        evaluator.process([record], [scores_of(np.zeros((24, 31), int))])
    write_labels(tmp_path / "labels/a.png", np.full((24, 32), 4, np.uint8))
    with pytest.raises(ValueError, match=r"got 4 in .*a\.png"):
        evaluator.process([record], [scores_of(np.zeros((24, 32), int))])


def test_label_maps_of_tiles_count_like_scores(tmp_path: Path) -> None:
    truths = {name: some_labels(seed) for seed, name in enumerate("ab")}
    images, labels = write_pairs(tmp_path, truths)
    guess = np.roll(np.where(truths["b"] == 255, 0, truths["b"]), 3, axis=0).astype(np.int64)
    results = []
    for output in (scores_of(guess), {"label_map": torch.as_tensor(guess.astype(np.int16))}):
        evaluator = sem_seg_evaluator("own", str(images), str(labels), num_classes=CLASSES)
        evaluator.reset()
        for name in truths:
            evaluator.process([{"file_name": str(images / f"{name}.jpg")}], [output])
        results.append(evaluator.evaluate())
    assert results[0] == results[1]
    with pytest.raises(ValueError, match=r"must be a map of the label map's .*got \(1, 2\)"):
        evaluator.process(
            [{"file_name": str(images / "a.jpg")}], [{"label_map": torch.zeros(1, 2)}]
        )
