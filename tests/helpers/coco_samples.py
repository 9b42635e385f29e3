"""Tiny COCO-format data sets for tests: one coloured rectangle per class on a grey image."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

COLOURS = ((220, 40, 40), (40, 200, 60), (60, 80, 230))


def rle_of(box: tuple[int, int, int, int], size: int) -> dict[str, object]:
    """The rectangle `box` (x, y, w, h) as a compressed RLE mask."""
    x, y, w, h = box
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[y : y + h, x : x + w] = 1
    return encode_mask(mask)


def encode_mask(mask: np.ndarray) -> dict[str, object]:
    """A mask (H, W) as compressed RLE that json can hold."""
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def polygon_of(box: tuple[int, int, int, int]) -> list[list[int]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def make_content(
    images: int = 4, size: int = 64, classes: int = 2, masks: str = "polygon"
) -> dict[str, list[dict[str, object]]]:
    """COCO content; `masks` is "polygon", "rle", "mixed" or "none"."""
    rng = np.random.default_rng(7)
    content = {
        "images": [
            {"id": i + 1, "file_name": f"{i:03d}.png", "height": size, "width": size}
            for i in range(images)
        ],
        "categories": [{"id": c + 1, "name": f"class{c}"} for c in range(classes)],
        "annotations": [],
    }
    for image in range(images):
        for label in range(classes):
            w, h = (int(v) for v in rng.integers(size // 4, size // 2, 2))
            x, y = int(rng.integers(0, size - w)), int(rng.integers(0, size - h))
            annotation = {
                "id": len(content["annotations"]) + 1,
                "image_id": image + 1,
                "category_id": label + 1,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
            if masks == "rle" or (masks == "mixed" and label % 2):
                annotation["segmentation"] = rle_of((x, y, w, h), size)
            elif masks != "none":
                annotation["segmentation"] = polygon_of((x, y, w, h))
            content["annotations"].append(annotation)
    return content


def write_coco(folder: Path, content: dict[str, list[dict[str, object]]]) -> tuple[str, str]:
    """Writes annotations and images; returns the json file and the image folder."""
    image_root = folder / "images"
    image_root.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        pixels = np.full((image["height"], image["width"], 3), 128, dtype=np.uint8)
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = (int(v) for v in annotation["bbox"])
                pixels[y : y + h, x : x + w] = COLOURS[annotation["category_id"] % len(COLOURS)]
        Image.fromarray(pixels).save(image_root / image["file_name"])
    json_file = folder / "instances.json"
    json_file.write_text(json.dumps(content))
    return str(json_file), str(image_root)
