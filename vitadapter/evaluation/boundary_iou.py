"""Boundary IoU of label maps (arXiv 2103.16562)."""

import cv2
import numpy as np

__all__ = ["BoundaryIoU"]

# Width of the band along contours, as a share of the image's diagonal (paper section 5).
_DILATION_RATIO = 0.02


def _in_band(labels: np.ndarray, width: int) -> np.ndarray:
    """Which pixels have a different label, or the end of the image, within `width` pixels.

    The band of each class is inside the class, so that one mask is enough for all of them.
    """
    padded = np.pad(labels.astype(np.float32), 1, constant_values=-1)
    kernel = np.ones((3, 3), dtype=np.uint8)
    least = cv2.erode(padded, kernel, iterations=width, borderValue=-1)
    largest = cv2.dilate(padded, kernel, iterations=width, borderValue=-1)
    return (least != largest)[1:-1, 1:-1]


class BoundaryIoU:
    """Intersection over union of the bands along the contours of each class.

    Detectron2's evaluator also has a metric of this name, but it treats differences of labels as
    labels, and leaves out pixels that only one of the bands covers.

    Args:
        num_classes: K.
        ignore_label: pixels with this true label are not counted.
    """

    def __init__(self, num_classes: int, ignore_label: int) -> None:
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        # Pixels of each class in both bands, in the predicted band, and in the true band.
        self.counts = np.zeros((3, num_classes), dtype=np.int64)

    def add(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Counts an image.

        Args:
            predicted: labels `(H, W)`.
            truth: labels `(H, W)`.
        """
        width = max(1, round(_DILATION_RATIO * float(np.hypot(*truth.shape))))
        valid = truth != self.ignore_label
        predicted_band = _in_band(predicted, width) & valid
        true_band = _in_band(truth, width) & valid
        both = predicted_band & true_band & (predicted == truth)
        for row, labels in enumerate((truth[both], predicted[predicted_band], truth[true_band])):
            self.counts[row] += np.bincount(labels, minlength=self.num_classes)

    def values(self) -> np.ndarray:
        """IoU in 0..1 of each class `(K,)`; NaN for a class that does not occur."""
        both, predicted, truth = self.counts
        union = predicted + truth - both
        occurs = truth > 0
        return np.divide(both, union, out=np.full(self.num_classes, np.nan), where=occurs)
