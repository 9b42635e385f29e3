"""Data sets in LVIS's format, read without the `lvis` package.

Detectron2's loader needs that package, whose last release (0.5.3) does not run on NumPy 1.24 or
newer. A file in LVIS's format is COCO instances in which images name their folder by `coco_url`
and tell which categories were looked for.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from torch import Tensor

from vitadapter.data.coco import load_coco_dataset, register_coco

__all__ = ["FederatedClassWeights", "load_lvis_dataset", "lvis_files", "register_lvis"]

Record = dict[str, object]


def lvis_files(
    name: str, json_file: str | None, image_root: str | None, *, role: str
) -> tuple[str, str]:
    """Annotation file and image folder of a data set given by its name or by its files.

    Args:
        name: a registered data set such as "lvis_v1_train"; not used when `json_file` is given.
        json_file: annotations in LVIS's format.
        image_root: folder of `train2017` and `val2017`, or of the images themselves.
        role: "train" or "test": which override an error names.

    Raises:
        ValueError: unknown name, missing file or missing folder.
    """
    metadata = MetadataCatalog.get(register_coco(name, json_file, image_root, role=role))
    return metadata.json_file, metadata.image_root


def _file_name(image: Mapping[str, object], image_root: Path) -> str:
    if "file_name" in image:
        return str(image_root / image["file_name"])
    # ".../train2017/000000000009.jpg": LVIS's validation set has images of both folders.
    return str(image_root.joinpath(*image["coco_url"].split("/")[-2:]))


def _records(content: Mapping[str, list[Record]], image_root: Path) -> list[Record]:
    labels = {c: i for i, c in enumerate(sorted(each["id"] for each in content["categories"]))}
    records = {
        image["id"]: {
            "file_name": _file_name(image, image_root),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "neg_category_ids": image.get("neg_category_ids", []),
            "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
            "annotations": [],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    }
    for annotation in content.get("annotations", ()):
        records[annotation["image_id"]]["annotations"].append(
            {
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": labels[annotation["category_id"]],
                "segmentation": annotation.get("segmentation"),
                "iscrowd": 0,
            }
        )
    return list(records.values())


def register_lvis(json_file: str, image_root: str) -> str:
    """Name under which Detectron2's catalogs hold the data set; may be called again at no cost.

    Args:
        json_file: annotations in LVIS's format.
        image_root: as in :func:`lvis_files`.
    """
    path = Path(json_file)
    status = path.stat()
    identity = f"{path.resolve()}|{image_root}|{status.st_mtime_ns}|{status.st_size}"
    name = f"lvis_{path.stem}_{hashlib.sha1(identity.encode()).hexdigest()[:10]}"
    if name in DatasetCatalog:
        return name

    def load() -> list[Record]:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = sorted(content["categories"], key=lambda category: category["id"])
        MetadataCatalog.get(name).set(
            thing_classes=[category["name"] for category in categories],
            thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
        )
        return _records(content, Path(image_root))

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="lvis")
    return name


def load_lvis_dataset(
    name: str,
    json_file: str | None = None,
    image_root: str | None = None,
    *,
    num_classes: int,
    masks: bool = True,
    filter_empty: bool = False,
    role: str = "train",
) -> list[Record]:
    """Loads and checks a data set in LVIS's format.

    Args:
        name, json_file, image_root: as in :func:`lvis_files`.
        num_classes, masks, filter_empty, role: as in
            :func:`~vitadapter.data.coco.load_coco_dataset`.

    Returns:
        list[dict]: Detectron2's standard data set dicts, with "neg_category_ids" and
        "not_exhaustive_category_ids" as the file has them.

    Raises:
        ValueError: the data cannot be used; the message names the override to change.
    """
    files = lvis_files(name, json_file, image_root, role=role)
    return load_coco_dataset(
        register_lvis(*files),
        num_classes=num_classes,
        masks=masks,
        filter_empty=filter_empty,
        role=role,
    )


class FederatedClassWeights:
    """How often each class is drawn as a negative of the federated loss (arXiv 2103.07461).

    For `get_fed_loss_cls_weights` of Detectron2's `FastRCNNOutputLayers`.
    """

    def __init__(self, name: str, json_file: str | None = None, power: float = 0.5) -> None:
        """
        Args:
            name: a registered data set such as "lvis_v1_train", of which Detectron2 knows the
                numbers; not used when `json_file` is given.
            json_file: annotations whose categories have an "image_count".
            power: to which the number of images of a class is taken.
        """
        self.name = name
        self.json_file = json_file
        self.power = power

    def __call__(self) -> Tensor:
        """Weights (K,).

        Raises:
            ValueError: the numbers of images are not known.
        """
        return torch.tensor(self._image_counts(), dtype=torch.float32) ** self.power

    def _image_counts(self) -> list[int]:
        if self.json_file is None:
            categories = MetadataCatalog.get(self.name).get("class_image_count")
        else:
            content = json.loads(Path(self.json_file).expanduser().read_text(encoding="utf-8"))
            categories = content["categories"]
        source = self.name if self.json_file is None else self.json_file
        if not categories or not all("image_count" in category for category in categories):
            raise ValueError(
                f"the federated loss needs an image_count of each category, but {source} has "
                "none: set model.roi_heads.box_predictor.use_fed_loss=False"
            )
        return [c["image_count"] for c in sorted(categories, key=lambda category: category["id"])]
