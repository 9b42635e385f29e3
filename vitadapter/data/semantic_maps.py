"""Semantic maps beside the images of a data set, such as COCO-Stuff's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

import numpy as np

from vitadapter.data.image_files import files_by_name, read_numbers

__all__ = ["add_semantic_maps", "read_semantic_map"]

Record = dict[str, object]


def add_semantic_maps(
    records: Sequence[Record], sem_seg_root: str, *, role: str = "train"
) -> list[Record]:
    """Data set dicts with "sem_seg_file_name", Detectron2's key for the map of an image.

    Args:
        records: Detectron2's standard data set dicts.
        sem_seg_root: folder with a png of the name of each image: one label per pixel, 255 where
            there is none. COCO-Stuff's `stuffthingmaps/train2017` is one.
        role: "train" or "test": which override an error names.

    Returns:
        list[dict]: new dicts.

    Raises:
        ValueError: the folder or a map does not exist.
    """
    root = Path(sem_seg_root).expanduser()
    override = f"set dataset.{role}.sem_seg_root=..., or =null to train without semantic maps"
    if not root.is_dir():
        raise ValueError(f"the folder of semantic maps {root} does not exist: {override}")
    maps = files_by_name(root, ".png")
    names = [normalize("NFC", Path(str(record["file_name"])).stem) for record in records]
    missing = [f"{name}.png" for name in names if name not in maps]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} semantic maps are not in {root} "
            f"({', '.join(missing[:3])}): {override}"
        )
    return [
        {**record, "sem_seg_file_name": maps[name]}
        for record, name in zip(records, names, strict=True)
    ]


def read_semantic_map(record: Mapping[str, object], image: np.ndarray) -> np.ndarray | None:
    """The map (H, W) uint8 of a data set dict; None if it has none.

    Args:
        record: with "sem_seg_file_name", or without.
        image: (H, W, C), the image that the map belongs to.

    Raises:
        ValueError: not an image, one of another size, or one that is not 8 bit of grey or palette;
            names the file.
    """
    file_name = record.get("sem_seg_file_name")
    if file_name is None:
        return None
    labels = read_numbers(str(file_name))
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(
            f"the semantic map {file_name} must have one label of 8 bit per pixel, "
            f"got {labels.dtype} of the shape {labels.shape}"
        )
    if labels.shape != image.shape[:2]:
        raise ValueError(
            f"the semantic map {file_name} must have the image's size "
            f"{image.shape[:2]}, got {labels.shape}"
        )
    return labels
