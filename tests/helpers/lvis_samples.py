"""Made-up annotations in LVIS's format, and detections for them."""

import json
from pathlib import Path

import numpy as np
from detection_samples import make_annotations, make_detections
from PIL import Image

CATEGORIES = (2, 5, 9, 11, 40)
FREQUENCIES = ("r", "c", "f", "f", "r")


def make_lvis(images: int = 20, seed: int = 0) -> dict[str, list[dict[str, object]]]:
    """Content whose images say what was looked for; without `file_name` and `iscrowd`."""
    rng = np.random.default_rng(seed)
    content = make_annotations(images, CATEGORIES, seed)
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    for category, frequency in zip(content["categories"], FREQUENCIES, strict=True):
        category.update(frequency=frequency, image_count=category["id"] ** 2)
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
        there = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
        absent = sorted(set(CATEGORIES) - there)
        image["neg_category_ids"] = [c for c in absent if rng.random() < 0.5]
        asked = sorted(there) + image["neg_category_ids"]
        image["not_exhaustive_category_ids"] = [c for c in asked if rng.random() < 0.4]
    return content


def make_lvis_detections(
    content: dict[str, list[dict[str, object]]],
) -> list[dict[str, object]]:
    """Of all categories in all images, right and wrong."""
    return make_detections(content, wrong=12)


def write_lvis(folder: Path, content: dict[str, list[dict[str, object]]]) -> tuple[str, str]:
    """Writes annotations and, below `val2017`, images; returns the json file and the folder."""
    (folder / "coco" / "val2017").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for image in content["images"]:
        pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "coco" / "val2017" / Path(image["coco_url"]).name)
    json_file = folder / "lvis.json"
    json_file.write_text(json.dumps(content))
    return str(json_file), str(folder / "coco")
