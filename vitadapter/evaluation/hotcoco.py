"""COCO's evaluation by hotcoco, which computes in Rust what pycocotools computes in Python."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitadapter.data.coco.json_entries import Id

__all__ = ["HotCocoEval"]

_FIELDS = ("bbox", "area", "segmentation", "iscrowd", "score")


def _hotcoco() -> Any:
    try:
        return import_module("hotcoco")
    except ImportError as error:
        raise ValueError(
            "HotCocoEval needs hotcoco: pip install 'vitadapter[fast-eval]', or leave "
            "dataloader.evaluator.cocoeval out for pycocotools"
        ) from error


def _numbered(ids: Iterable[Id]) -> dict[Id, int]:
    """Numbers from 1 in the order of the ids, which decides between detections of equal score."""
    return {id_: number for number, id_ in enumerate(sorted(set(ids)), start=1)}


def _converted(api: COCO, images: Mapping[Id, int], categories: Mapping[Id, int]) -> object:
    """The regions of an index of pycocotools as one of hotcoco, which takes no words as ids."""
    content = {
        "images": [
            {"id": images[id_], **{side: image[side] for side in ("height", "width")}}
            for id_, image in api.imgs.items()
        ],
        "categories": [{"id": number, "name": str(number)} for number in categories.values()],
        "annotations": [
            {
                "id": region["id"],
                "image_id": images[region["image_id"]],
                "category_id": categories[region["category_id"]],
                **{field: region[field] for field in _FIELDS if field in region},
            }
            for region in api.dataset["annotations"]
        ],
    }
    return _hotcoco().COCO(content)


class HotCocoEval(COCOeval):
    """pycocotools' `COCOeval` whose matches and curves are hotcoco's (`pip install hotcoco`).

    Precisions, recalls and scores equal pycocotools' bit for bit. `evalImgs` and `ious`, what was
    matched with what, stay empty.

    Args:
        cocoGt: the annotations.
        cocoDt: the detections, from `cocoGt.loadRes`.
        iouType: "bbox" or "segm".

    Raises:
        ValueError: hotcoco is not installed, or `iouType` is something else.
    """

    def __init__(self, cocoGt: COCO, cocoDt: COCO, iouType: str = "segm") -> None:  # noqa: N803
        if iouType not in ("bbox", "segm"):
            raise ValueError(f"iouType must be 'bbox' or 'segm', got {iouType!r}")
        super().__init__(cocoGt, cocoDt, iouType)
        self._images = _numbered(cocoGt.imgs)
        self._categories = _numbered(cocoGt.cats)
        self._fast = _hotcoco().COCOeval(
            _converted(cocoGt, self._images, self._categories),
            _converted(cocoDt, self._images, self._categories),
            iouType,
        )

    def evaluate(self) -> None:
        """Matches the detections of `params` with the annotations."""
        params, fast = self.params, self._fast.params
        params.imgIds = sorted(set(params.imgIds))
        params.catIds = sorted(set(params.catIds))
        params.maxDets = sorted(params.maxDets)
        fast.imgIds = [self._images[id_] for id_ in params.imgIds]
        fast.catIds = [self._categories[id_] for id_ in params.catIds]
        fast.maxDets = list(params.maxDets)
        fast.iouThrs = params.iouThrs
        fast.recThrs = params.recThrs
        fast.areaRng = params.areaRng
        fast.areaRngLbl = params.areaRngLbl
        fast.useCats = params.useCats
        self._fast.evaluate()

    def accumulate(self, p: object = None) -> None:
        """Computes precision and recall.

        Args:
            p: has to be None: parameters of its own for this step, which hotcoco does not know.

        Raises:
            ValueError: `p` is given.
        """
        if p is not None:
            raise ValueError(f"HotCocoEval accumulates what it evaluated: p must be None, got {p}")
        self._fast.accumulate()
        figures = {
            key: np.asarray(self._fast.eval[key]) for key in ("precision", "recall", "scores")
        }
        counts = list(figures["precision"].shape)
        self.eval = {"params": self.params, "counts": counts, **figures}
