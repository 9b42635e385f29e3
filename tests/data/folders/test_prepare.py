"""From each format, the data set dicts are those of the COCO file that it was made from."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import folder_formats as formats
import numpy as np
import pytest
from coco_samples import encode_mask
from detectron2.data import MetadataCatalog
from folder_formats import Content, Splits
from folder_samples import Records, load, sample_splits, tiny_config
from pycocotools import mask as mask_util

from vitadapter.data.coco import load_coco_dataset, register_coco

Writer = Callable[[Path, Splits], None]

WITH_MASKS: dict[str, Writer] = {
    "roboflow": formats.write_roboflow_coco,
    "yolo polygons": lambda folder, splits: formats.write_yolo(folder, splits, polygons=True),
    "labelme": formats.write_labelme,
}
BOXES_ONLY: dict[str, Writer] = {
    "yolo boxes": lambda folder, splits: formats.write_yolo(folder, splits, polygons=False),
    "voc": formats.write_voc,
}


def by_coco(folder: Path, splits: Splits, *, masks: bool) -> list[Records]:
    """What the COCO files load as, the old way."""
    loaded = []
    for role, split in (("train", "train"), ("test", "val")):
        content, images = splits[split]
        json_file = folder / f"{split}.json"
        json_file.write_text(json.dumps(content))
        loaded.append(
            load_coco_dataset(
                "",
                str(json_file),
                str(images),
                num_classes=len(content["categories"]),
                masks=masks,
                filter_empty=role == "train",
                role=role,
            )
        )
    return loaded


def bitmap(mask: object, size: tuple[int, int]) -> np.ndarray:
    rles = mask_util.frPyObjects(mask, *size) if isinstance(mask, list) else [mask]
    return mask_util.decode(mask_util.merge(rles))


def assert_equal_records(found: Records, expected: Records, *, masks: bool, atol: float) -> None:
    assert [Path(r["file_name"]).name for r in found] == [
        Path(r["file_name"]).name for r in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert Path(one["file_name"]).read_bytes() == Path(other["file_name"]).read_bytes()
        assert (one["height"], one["width"]) == (other["height"], other["width"])
        objects, truths = one["annotations"], other["annotations"]
        for field in ("category_id", "iscrowd", "bbox_mode"):
            assert [a[field] for a in objects] == [a[field] for a in truths]
        boxes = [[a["bbox"] for a in annotations] for annotations in (objects, truths)]
        np.testing.assert_allclose(*boxes, atol=atol)
        for a, b in zip(objects, truths, strict=True) if masks else ():
            size = (one["height"], one["width"])
            different = bitmap(a["segmentation"], size) != bitmap(b["segmentation"], size)
            # Pixels whose centre lies on an edge, to rounding.
            assert different.mean() <= 1e-4


@pytest.mark.parametrize("name", [*WITH_MASKS, *BOXES_ONLY])
def test_loads_as_the_coco_file(name: str, splits: Splits, root: Path, tmp_path: Path) -> None:
    masks = name in WITH_MASKS
    (WITH_MASKS | BOXES_ONLY)[name](root, splits)
    cfg = tiny_config(root, f"dataloader.train.dataset.masks={masks}")
    assert cfg.dataset.root is None
    assert cfg.model.roi_heads.num_classes == 2
    for found, expected in zip(load(cfg), by_coco(tmp_path, splits, masks=masks), strict=True):
        assert_equal_records(found, expected, masks=masks, atol=1e-4)
    names = MetadataCatalog.get(register_coco("", *_files(cfg, "test"))).thing_classes
    assert names == ["class0", "class1"]


def _files(cfg: object, role: str) -> tuple[str, str]:
    return cfg.dataset[role].json_file, cfg.dataset[role].image_root


def test_number_of_classes_follows_in_any_config(root: Path, tmp_path: Path) -> None:
    splits = sample_splits(tmp_path / "three")
    for content, _ in splits.values():
        content["categories"].append({"id": 9, "name": "never seen"})
    formats.write_roboflow_coco(root, splits)
    cfg = tiny_config(root)
    assert cfg.dataset.num_classes == 3
    assert cfg.model.roi_heads.mask_head.num_classes == 3


def test_labelme_keeps_parts_and_holes(splits: Splits, root: Path, tmp_path: Path) -> None:
    content, _ = splits["train"]
    one, other, *_ = content["annotations"]
    one["segmentation"] = [[2, 2, 12, 2, 12, 12, 2, 12], [20, 20, 30, 20, 30, 30, 20, 30]]
    one["bbox"] = [2, 2, 28, 28]
    ring = np.zeros((64, 64), np.uint8)
    ring[10:30, 10:40] = 1
    ring[15:20, 15:25] = 0
    other.update(segmentation=encode_mask(ring), bbox=[10, 10, 30, 20])
    formats.write_labelme(root, splits)
    found = load(tiny_config(root))
    # Polygons come after masks, which a file may have between them.
    for records in found:
        for record in records:
            record["annotations"].sort(key=lambda a: a["category_id"])
    for records, expected in zip(found, by_coco(tmp_path, splits, masks=True), strict=True):
        assert_equal_records(records, expected, masks=True, atol=1e-4)


def _single_parts(content: Content) -> Content:
    """With the objects that YOLO can tell of: those of one part, whose box is that of it."""
    kept = []
    for a in content["annotations"]:
        if isinstance(a["segmentation"], list) and len(a["segmentation"]) == 1:
            points = np.reshape(a["segmentation"][0], (-1, 2))
            low, high = points.min(0), points.max(0)
            kept.append({**a, "bbox": [*low.tolist(), *(high - low).tolist()]})
    return {**content, "annotations": kept}


def _of_whole_pixels(annotation: dict[str, object]) -> dict[str, object]:
    x, y, w, h = annotation["bbox"]
    left, top = math.floor(x), math.floor(y)
    return {**annotation, "bbox": [left, top, math.ceil(x + w) - left, math.ceil(y + h) - top]}


@pytest.mark.parametrize("name", [*WITH_MASKS, *BOXES_ONLY])
def test_coco_images(name: str, shared: Path, root: Path, tmp_path: Path) -> None:
    """Photographs of COCO, with all its classes and with crowds where the format has them."""
    folder = shared / "data" / "coco_mini"
    splits = {}
    for split in ("train", "val"):
        content = json.loads((folder / f"annotations/instances_{split}.json").read_text())
        content["images"] = content["images"][:6]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        if name.startswith("yolo"):
            content = _single_parts(content)
        if name == "voc":
            content["annotations"] = [_of_whole_pixels(a) for a in content["annotations"]]
        if name == "labelme":  # which has no crowds
            content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
        splits[split] = (content, folder / "images" / split)
    masks = name in WITH_MASKS
    (WITH_MASKS | BOXES_ONLY)[name](root, splits)
    cfg = tiny_config(root, f"dataloader.train.dataset.masks={masks}", "dataset.unlabelled=empty")
    assert cfg.dataset.num_classes == 80
    # Some of COCO's own boxes differ from their polygons.
    atol = 3 if name == "labelme" else 1e-4
    for found, expected in zip(load(cfg), by_coco(tmp_path, splits, masks=masks), strict=True):
        assert_equal_records(found, expected, masks=masks, atol=atol)
