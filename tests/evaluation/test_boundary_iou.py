"""Boundary IoU against its definition, class by class with scipy's erosion."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from sem_seg_samples import some_labels

from vitadapter.evaluation.boundary_iou import BoundaryIoU


def band(mask: np.ndarray, width: int) -> np.ndarray:
    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=width)


@pytest.mark.parametrize("size", [(24, 32), (90, 130)])
def test_definition(size: tuple[int, int]) -> None:
    measure = BoundaryIoU(4, 255)
    both, union = np.zeros(4), np.zeros(4)
    for seed in range(3):
        truth = some_labels(seed, size)
        predicted = np.roll(some_labels(seed, size) % 255, 2, axis=1)
        measure.add(predicted, truth)
        width = max(1, round(0.02 * np.hypot(*size)))
        for label in range(4):
            a, b = (band(x == label, width) & (truth != 255) for x in (truth, predicted))
            both[label] += (a & b).sum()
            union[label] += (a | b).sum()
    np.testing.assert_allclose(measure.values()[:3], both[:3] / union[:3])
    assert np.isnan(measure.values()[3])


def test_perfect_and_ignored() -> None:
    truth = some_labels()
    measure = BoundaryIoU(3, 255)
    measure.add(np.where(truth == 255, 1, truth), truth)
    values = measure.values()
    assert (values > 0.8).all()  # the ignored corner is a contour in the truth alone
