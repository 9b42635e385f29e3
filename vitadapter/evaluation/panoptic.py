"""Evaluates panoptic segmentation on the data set that a config names."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from PIL import Image

from vitadapter.data.dataset_source import Record, Segment
from vitadapter.data.panoptic import register_panoptic
from vitadapter.data.panoptic.maps import (
    check_segment_ids,
    id_to_rgb,
    read_panoptic_png,
    rgb_to_id,
)
from vitadapter.evaluation.coco import coco_evaluator
from vitadapter.evaluation.panoptic_quality import (
    average_quality,
    count_matches,
    format_table,
    quality_of,
)

__all__ = ["PanopticEvaluator", "panoptic_evaluator"]

logger = logging.getLogger(__name__)

Metrics = dict[str, float]

# Suffixes of the metrics, as Detectron2's evaluator names them.
_GROUPS = ("", "_th", "_st")


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of all classes, things and stuff, image by image.

    Detectron2's evaluator computes them with `panopticapi`, which no package index has. This one
    needs no other package, and writes predictions in the same format.

    Args:
        dataset_name: registered by `register_panoptic`.
        output_dir: folder for predictions and table; None writes none.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        self._metadata = MetadataCatalog.get(dataset_name)
        self._records = {str(r["file_name"]): r for r in DatasetCatalog.get(dataset_name)}
        self._class_names: Sequence[str] = self._metadata.stuff_classes
        self._num_things = len(self._metadata.thing_classes)
        ids = self._metadata.thing_dataset_id_to_contiguous_id
        ids = ids | self._metadata.stuff_dataset_id_to_contiguous_id
        self._dataset_ids = {index: id_ for id_, index in ids.items()}
        self._output_dir = None if output_dir is None else Path(output_dir)
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self._counts = np.zeros((len(self._class_names), 4))
        self._num_images = 0
        self._predictions: list[dict[str, object]] = []

    def process(
        self,
        inputs: Sequence[Record],
        outputs: Sequence[Mapping[str, tuple[torch.Tensor, Sequence[Segment]]]],
    ) -> None:
        """Counts the matches of some images.

        Args:
            inputs: records with "file_name".
            outputs: with "panoptic_seg": a map (H, W) of segment ids, 0 for none, and for each
                segment its `id` and `category_id`.

        Raises:
            ValueError: a prediction does not fit the image or its own segments; names the file.
        """
        for record, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            predicted = torch.as_tensor(ids).numpy(force=True)
            truth = self._records[str(record["file_name"])]
            true_ids = rgb_to_id(read_panoptic_png(str(truth["pan_seg_file_name"])))
            check_segment_ids(true_ids, truth)
            try:
                self._counts += count_matches(
                    true_ids,
                    truth["segments_info"],
                    predicted,
                    segments,
                    len(self._class_names),
                )
            except ValueError as error:
                raise ValueError(f"the prediction for {record['file_name']}: {error}") from error
            self._num_images += 1
            if self._output_dir is not None:
                self._write_prediction(self._output_dir, truth, predicted, segments)

    def _write_prediction(
        self, output_dir: Path, truth: Record, predicted: np.ndarray, segments: Sequence[Segment]
    ) -> None:
        """Writes a PNG, and keeps the entry of COCO's results format with the data set's ids."""
        # With its folders, because several maps may have the same file name.
        name = Path(str(truth["pan_seg_file_name"]))
        root = self._metadata.panoptic_root
        name = name.relative_to(root) if name.is_relative_to(root) else Path(name.name)
        path = output_dir / "panoptic_predictions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(id_to_rgb(predicted)).save(path)
        listed = [
            {"id": int(s["id"]), "category_id": self._dataset_ids[s["category_id"]]}
            for s in segments
        ]
        self._predictions.append(
            {"image_id": truth["image_id"], "file_name": name.as_posix(), "segments_info": listed}
        )

    def evaluate(self) -> dict[str, Metrics] | None:
        """Metrics in percent: PQ, SQ and RQ of all, with `_th` of things and with `_st` of stuff.

        Returns:
            {"panoptic_seg": metrics}, without those of a group none of whose classes occurs;
            None in all processes but the first.
        """
        counts = np.sum(comm.all_gather(self._counts), axis=0)
        num_images = sum(comm.all_gather(self._num_images))
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        if num_images < len(self._records):
            logger.warning("evaluated %d of %d images", num_images, len(self._records))
        qualities = quality_of(counts)
        things = self._num_things
        groups = (qualities, qualities[:things], qualities[things:])
        metrics: Metrics = {}
        for suffix, group in zip(_GROUPS, groups, strict=True):
            average = average_quality(group)
            if average is not None:
                for name, value in (("PQ", average.pq), ("SQ", average.sq), ("RQ", average.rq)):
                    metrics[f"{name}{suffix}"] = 100 * value
        table = format_table(self._class_names, things, counts)
        logger.info("Panoptic segmentation (%%):\n%s", table)
        if self._output_dir is not None:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            (self._output_dir / "panoptic_results.md").write_text(table + "\n", encoding="utf-8")
            predictions = {
                "annotations": [p for part in gathered for p in part],
                # As in Detectron2's file: results say what their classes were called.
                "categories": [
                    {"id": self._dataset_ids[k], "name": name, "isthing": int(k < things)}
                    for k, name in enumerate(self._class_names)
                ],
            }
            (self._output_dir / "panoptic_predictions.json").write_text(json.dumps(predictions))
        return {"panoptic_seg": metrics}


def panoptic_evaluator(
    name: str,
    json_file: str | None = None,
    panoptic_root: str | None = None,
    image_root: str | None = None,
    instances_json: str | None = None,
    output_dir: str | None = None,
    *,
    num_classes: int,
    num_things: int,
    max_dets_per_image: int = 100,
) -> DatasetEvaluator:
    """Evaluates panoptic quality and, with `instances_json`, the AP of boxes and masks.

    Args:
        name, json_file, panoptic_root, image_root, instances_json, num_classes, num_things: as in
            `register_panoptic`.
        output_dir: folder for predictions and tables; None writes none.
        max_dets_per_image: for the AP, as in `coco_evaluator`.

    Raises:
        ValueError: the data set does not exist.
    """
    registered = register_panoptic(
        name,
        json_file,
        panoptic_root,
        image_root,
        instances_json,
        num_classes=num_classes,
        num_things=num_things,
        role="test",
    )
    panoptic = PanopticEvaluator(registered, output_dir)
    if MetadataCatalog.get(registered).get("json_file") is None:
        return panoptic
    things = coco_evaluator(
        registered, output_dir=output_dir, max_dets_per_image=max_dets_per_image
    )
    return DatasetEvaluators([panoptic, things])
