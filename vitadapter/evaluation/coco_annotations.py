"""Annotations and detections as pycocotools takes them."""

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from pycocotools.coco import COCO

from vitadapter.data.coco_format import CocoData, with_masks

__all__ = ["coco_api", "detections_of_task", "warn_of_uncounted"]

logger = logging.getLogger(__name__)


def coco_api(data: CocoData, *, masks: bool = False) -> COCO:
    """The annotations, under ids of their own: those of the file may be 0, or occur twice.

    Args:
        data: with an id of its own for each image.
        masks: whether to leave out what has no mask, as training of masks does.

    Raises:
        ValueError: an image without an id, or two with the same; masks, but there are none.
    """
    data = with_masks(data) if masks else data
    images = [{**record, "id": record.get("image_id")} for record in data.records]
    repeated = Counter(image["id"] for image in images)
    for image in images:
        image.pop("annotations", None)
        if image["id"] is None or repeated[image["id"]] > 1:
            raise ValueError(
                f"{data.source} must have an image_id for each image to evaluate, but "
                f"{image['file_name']} has none of its own, {image['id']!r}"
            )
    objects = [(r["image_id"], a) for r in data.records for a in r.get("annotations", ())]
    api = COCO()
    api.dataset = {
        "images": images,
        "categories": list(data.categories),
        "annotations": [
            {
                **annotation,
                "id": number,
                "image_id": image,
                "category_id": data.categories[annotation["category_id"]]["id"],
            }
            for number, (image, annotation) in enumerate(objects, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        api.createIndex()
    return api


def warn_of_uncounted(api: COCO, max_dets_per_image: int, *, per_category: bool) -> None:
    """One warning where images have more objects than detections are counted.

    Args:
        api: the annotations.
        max_dets_per_image: detections that are counted.
        per_category: whether that many are counted of each category, as COCO's rules say.
    """
    counts = Counter(
        (annotation["image_id"], annotation["category_id"] if per_category else None)
        for annotation in api.anns.values()
        if not annotation["iscrowd"]
    )
    crowded = {key: count for key, count in counts.items() if count > max_dets_per_image}
    if crowded:
        (image, category), most = max(crowded.items(), key=lambda item: item[1])
        what = "objects" if category is None else f"objects of {api.cats[category]['name']!r}"
        logger.warning(
            "%d images have more than %d objects%s, such as %s with %d %s, but no more detections "
            "are counted: set dataloader.evaluator.max_dets_per_image=%d, and let the model "
            "predict as many",
            len({image for image, _ in crowded}),
            max_dets_per_image,
            " of a category" if per_category else "",
            api.imgs[image]["file_name"],
            most,
            what,
            most,
        )


def detections_of_task(
    detections: Sequence[Mapping[str, object]], task: str
) -> list[dict[str, object]]:
    """Copies, which pycocotools may change, with the regions of one task.

    A mask with a box would be sorted into the sizes by the area of the box.

    Args:
        detections: in COCO's results format.
        task: "bbox" or "segm".
    """
    other = {"bbox": "segmentation", "segm": "bbox"}[task]
    return [{k: v for k, v in found.items() if k != other} for found in detections]
