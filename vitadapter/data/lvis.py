"""Data sets in LVIS's format, read without the `lvis` package.

Detectron2's loader needs that package, whose last release (0.5.3) does not run with NumPy 1.24 or
newer. LVIS's format is COCO's instances format with images that name their folder in `coco_url`
and list the categories for which they were searched. `read_coco` reads both formats.
"""

from pathlib import Path
from typing import TypeGuard

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from vitadapter.data.coco import load_coco_dataset, register_coco
from vitadapter.data.coco.annotations import coco_classes
from vitadapter.data.coco.json_entries import Findings, read_json
from vitadapter.data.coco.objects import is_number
from vitadapter.data.dataset_source import Record, refuse_root

__all__ = ["FederatedClassWeights", "load_lvis_dataset", "lvis_files"]


def lvis_files(
    name: str, json_file: str | None, image_root: str | None, *, role: str
) -> tuple[str, str]:
    """Annotation file and image folder of a data set that is given by its name or its files.

    Args:
        name: a registered data set such as "lvis_v1_train"; not used if `json_file` is given.
        json_file: annotations in LVIS's format.
        image_root: folder of `train2017` and `val2017`, or of the images themselves.
        role: "train" or "test": which override an error names.

    Raises:
        ValueError: the name is unknown, or a file or folder is missing.
    """
    metadata = MetadataCatalog.get(register_coco(name, json_file, image_root, role=role))
    return metadata.json_file, metadata.image_root


def load_lvis_dataset(
    name: str,
    json_file: str | None = None,
    image_root: str | None = None,
    *,
    num_classes: int,
    masks: bool = True,
    filter_empty: bool = False,
    role: str = "train",
    root: str | None = None,
) -> list[Record]:
    """Loads and checks a data set in LVIS's format.

    Args:
        name, json_file, image_root: as in `lvis_files`.
        num_classes, masks, filter_empty, role, root: as in `load_coco_dataset`.

    Returns:
        Detectron2's standard data set dicts, with "neg_category_ids" and
        "not_exhaustive_category_ids" if the file has them.

    Raises:
        ValueError: the data cannot be used; the message names the override to change.
    """
    refuse_root(root)
    return load_coco_dataset(
        name,
        *lvis_files(name, json_file, image_root, role=role),
        num_classes=num_classes,
        masks=masks,
        filter_empty=filter_empty,
        role=role,
    )


class FederatedClassWeights:
    """How often each class is drawn as a negative of the federated loss (arXiv 2103.07461).

    For `get_fed_loss_cls_weights` of Detectron2's `FastRCNNOutputLayers`.

    Args:
        name: a registered data set such as "lvis_v1_train", for which Detectron2 has the
            numbers; not used if `json_file` is given.
        json_file: annotations whose categories have an "image_count".
        power: to which the number of images of a class is raised.
    """

    def __init__(self, name: str, json_file: str | None = None, power: float = 0.5) -> None:
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
            source = self.name
            categories = MetadataCatalog.get(source).get("class_image_count") or ()
        else:
            source = str(Path(self.json_file).expanduser())
            categories, _ = coco_classes(read_json(source), source, Findings())
        counts = [c.get("image_count") for c in sorted(categories, key=lambda c: c["id"])]
        if not counts or not all(map(_is_count, counts)):
            raise ValueError(
                f"the federated loss needs an image_count of each category, but {source} has "
                "none: set model.roi_heads.box_predictor.use_fed_loss=False"
            )
        return counts


def _is_count(value: object) -> TypeGuard[float]:
    return is_number(value) and 0 <= value < 2**63
