"""Evaluates semantic segmentation on the data set that a config names."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm

from vitadapter.data.dataset_source import Record
from vitadapter.data.sem_seg import LabelReader, register_sem_seg
from vitadapter.evaluation.boundary_iou import BoundaryIoU
from vitadapter.visualization.figures import draw_confusion_matrix
from vitadapter.visualization.markdown import figure_cell, markdown_table

__all__ = ["sem_seg_evaluator"]

logger = logging.getLogger(__name__)

Metrics = dict[str, float]

_MEANS = (
    ("mIoU", "mIoU"),
    ("mAcc", "mACC"),
    ("aAcc", "pACC"),
    ("fwIoU", "fwIoU"),
    ("mean boundary IoU", "mBoundaryIoU"),
)
_COLUMNS = (("IoU", "IoU"), ("Acc", "ACC"), ("boundary IoU", "BoundaryIoU"))


def _format_table(
    class_names: Sequence[str], metrics: Mapping[str, float], confusion: np.ndarray
) -> str:
    """Formats means and the figures of each class as Markdown tables.

    Args:
        class_names: K names.
        metrics: in percent, named as by Detectron2's evaluator; missing ones become "-".
        confusion: pixels (K, K) by predicted and true class.
    """
    means = [(name, metrics[key]) for name, key in _MEANS if key in metrics]
    columns = [c for c in _COLUMNS if any(f"{c[1]}-{name}" in metrics for name in class_names)]
    rows = [["class", *(title for title, _ in columns), "pixels"]]
    for index, name in enumerate(class_names):
        values = [figure_cell(metrics.get(f"{key}-{name}"), 2) for _, key in columns]
        rows.append([name, *values, str(int(confusion[:, index].sum()))])
    summary = [[name for name, _ in means], [figure_cell(value, 2) for _, value in means]]
    return f"{markdown_table(summary)}\n\n{markdown_table(rows)}"


class _SemSegEvaluator(SemSegEvaluator):
    """Detectron2's evaluator with shifted labels, without NaN, and with a report."""

    def __init__(
        self,
        dataset_name: str,
        read_label: LabelReader,
        output_dir: str | None,
        boundary_iou: bool,
    ) -> None:
        super().__init__(dataset_name, output_dir=output_dir, sem_seg_loading_fn=read_label)
        self._read_label = read_label
        self._compute_boundary_iou = False  # Detectron2's kind
        self._with_boundary = boundary_iou
        self._image_root = Path(MetadataCatalog.get(dataset_name).image_root)

    def reset(self) -> None:
        super().reset()
        self._boundary = BoundaryIoU(self._num_classes, self._ignore_label)

    def process(
        self,
        inputs: Sequence[Record],
        outputs: Sequence[Mapping[str, torch.Tensor]],
    ) -> None:
        """Takes the "sem_seg" of some images, or the "label_map" that tiles give."""
        for record, output in zip(inputs, outputs, strict=True):
            truth = self._read_label(self.input_file_to_gt_file[record["file_name"]])
            labels = self._labels(record, output, truth.shape)
            if self._with_boundary:
                self._boundary.add(labels, truth)
            count = self._num_classes + 1  # with what is ignored
            true_classes = np.where(truth == self._ignore_label, self._num_classes, truth)
            pairs = np.bincount((count * labels + true_classes).ravel(), minlength=count**2)
            self._conf_matrix += pairs.reshape(count, count)
            self._predictions.extend(self.encode_json_sem_seg(labels, record["file_name"]))

    def _labels(
        self, record: Record, output: Mapping[str, torch.Tensor], size: tuple[int, ...]
    ) -> np.ndarray:
        """The predicted classes (H, W) int64 of an image."""
        name = record["file_name"]
        if "label_map" in output:
            labels = output["label_map"].numpy(force=True).astype(np.int64)
            if labels.shape != size:
                raise ValueError(
                    f"the prediction for {name} must be a map of the label map's "
                    f"(height, width) {size}, got {labels.shape}"
                )
            return labels
        scores = output["sem_seg"]
        if scores.shape != (self._num_classes, *size):
            raise ValueError(
                f"the prediction for {name} must be {self._num_classes} maps of "
                f"the label map's (height, width) {size}, got {tuple(scores.shape)}"
            )
        return scores.argmax(dim=0).numpy(force=True)

    def evaluate(self) -> dict[str, Metrics] | None:
        """Detectron2's metrics in percent, without those of classes that do not occur."""
        counts = np.sum(comm.all_gather(self._boundary.counts), axis=0)
        if self._distributed:
            confusion = np.sum(comm.all_gather(self._conf_matrix), axis=0)
        else:
            confusion = self._conf_matrix
        if not confusion[:-1, :-1].any():
            logger.warning("no pixel of the test data has a label: nothing is evaluated")
            return {"sem_seg": {}}
        results = super().evaluate()
        if results is None:  # not the main process
            return None
        metrics: Metrics = results["sem_seg"]
        if self._with_boundary:
            self._boundary.counts = counts
            values = 100 * self._boundary.values()
            metrics["mBoundaryIoU"] = float(np.nanmean(values))
            names = (f"BoundaryIoU-{name}" for name in self._class_names)
            metrics.update(zip(names, map(float, values), strict=True))
        absent = [n for n in self._class_names if np.isnan(metrics[f"IoU-{n}"])]
        if absent:
            logger.info("classes without a labelled pixel: %s", ", ".join(absent))
        metrics = {name: float(value) for name, value in metrics.items() if not np.isnan(value)}
        self._write(metrics, confusion[:-1, :-1])
        return {"sem_seg": metrics}

    def _write(self, metrics: Metrics, confusion: np.ndarray) -> None:
        table = _format_table(self._class_names, metrics, confusion)
        logger.info("Semantic segmentation (%%):\n%s", table)
        if not self._output_dir:
            return
        folder = Path(self._output_dir)
        (folder / "sem_seg_results.md").write_text(table + "\n", encoding="utf-8")
        (folder / "confusion_matrix.json").write_text(
            json.dumps({"classes": self._class_names, "predicted_by_true": confusion.tolist()})
        )
        draw_confusion_matrix(confusion, self._class_names, folder / "confusion_matrix.png")


def sem_seg_evaluator(
    name: str,
    image_root: str | None = None,
    label_root: str | None = None,
    output_dir: str | None = None,
    *,
    num_classes: int,
    class_names: str | None = None,
    ignore_label: int = 255,
    reduce_zero_label: bool = False,
    boundary_iou: bool = False,
) -> SemSegEvaluator:
    """Detectron2's evaluator for a data set that is given by name or by its folders.

    Its metrics, in percent, are mIoU, fwIoU (weighted by frequency), mACC (mAcc in the paper's code
    base), pACC (aAcc there), IoU-CLASS and ACC-CLASS. A class without a labelled pixel in the
    whole test data counts in none of them, even if it is predicted.

    Args:
        name, image_root, label_root, num_classes, class_names, ignore_label, reduce_zero_label: as
            in `register_sem_seg`.
        output_dir: folder for predictions, table and confusion matrix; None writes none.
        boundary_iou: whether to add mBoundaryIoU and BoundaryIoU-CLASS.

    Raises:
        ValueError: the data set does not exist.
    """
    registered = register_sem_seg(
        name,
        image_root,
        label_root,
        num_classes=num_classes,
        class_names=class_names,
        ignore_label=ignore_label,
        reduce_zero_label=reduce_zero_label,
        role="test",
    )
    reader = LabelReader(num_classes, ignore_label, reduce_zero_label)
    return _SemSegEvaluator(registered, reader, output_dir, boundary_iou)
