"""Data sets in LVIS's format, read without the `lvis` package.

Detectron2's loader needs that package, whose last release (0.5.3) does not run on NumPy 1.24 or
newer. A file in LVIS's format is COCO instances in which images name their folder by `coco_url`
and tell which categories were looked for; `read_coco` reads both.
"""

from numbers import Real
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from vitadapter.data.coco import load_coco_dataset, register_coco
from vitadapter.data.coco.annotations import coco_classes
from vitadapter.data.coco.json_entries import Findings, read_json
from vitadapter.data.dataset_source import Record, refuse_root

__all__ = ["FederatedClassWeights", "load_lvis_dataset", "lvis_files"]


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
        name, json_file, image_root: as in :func:`lvis_files`.
        num_classes, masks, filter_empty, role, root: as in
            :func:`~vitadapter.data.coco.load_coco_dataset`.

    Returns:
        list[dict]: Detectron2's standard data set dicts, with "neg_category_ids" and
        "not_exhaustive_category_ids" where the file has them.

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
            source = self.name
            categories = MetadataCatalog.get(source).get("class_image_count") or ()
        else:
            source = str(Path(self.json_file).expanduser())
            categories = coco_classes(read_json(source), source, Findings())
        counts = [c.get("image_count") for c in sorted(categories, key=lambda c: c["id"])]
        if not counts or not all(map(_is_count, counts)):
            raise ValueError(
                f"the federated loss needs an image_count of each category, but {source} has "
                "none: set model.roi_heads.box_predictor.use_fed_loss=False"
            )
        return counts


def _is_count(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value < 2**63
