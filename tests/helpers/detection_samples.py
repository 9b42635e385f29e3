"""Made-up annotations and detections in COCO's format, of all sizes, right and wrong."""

import numpy as np
from coco_samples import rle_of

SIZE = 256  # pixels
_SIDES = ((6, 30), (40, 90), (110, 200))


def _box(rng: np.random.Generator) -> tuple[int, int, int, int]:
    low, high = _SIDES[rng.integers(len(_SIDES))]
    w, h = (int(v) for v in rng.integers(low, high, 2))
    return int(rng.integers(0, SIZE - w)), int(rng.integers(0, SIZE - h)), w, h


def _moved(box: tuple[int, int, int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    x, y, w, h = box
    shift = rng.integers(-max(2, w // 6), max(3, w // 6), 4)
    x, y = max(0, x + int(shift[0])), max(0, y + int(shift[1]))
    w, h = max(2, w + int(shift[2])), max(2, h + int(shift[3]))
    return x, y, min(w, SIZE - x), min(h, SIZE - y)


def make_annotations(
    images: int = 12, categories: tuple[int, ...] = (2, 5, 9, 40), seed: int = 0
) -> dict[str, list[dict[str, object]]]:
    """COCO content with gaps in the category ids, crowds, and none of the last category."""
    rng = np.random.default_rng(seed)
    content = {
        "images": [
            {"id": 10 * i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": c, "name": f"name{c}"} for c in categories],
        "annotations": [],
    }
    for image in content["images"]:
        for _ in range(rng.integers(0, 9)):
            box = _box(rng)
            x, y, w, h = box
            mask = x, y, max(1, 4 * w // 5), h  # another shape than the box
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice(categories[:-1])),
                    "bbox": list(box),
                    "area": mask[2] * mask[3],
                    "iscrowd": int(rng.random() < 0.1),
                    "segmentation": rle_of(mask, SIZE),
                }
            )
    return content


def make_detections(
    content: dict[str, list[dict[str, object]]], seed: int = 1, wrong: int = 4
) -> list[dict[str, object]]:
    """Most objects found, some twice or as another class, and `wrong` false boxes per image."""
    rng = np.random.default_rng(seed)
    categories = [category["id"] for category in content["categories"]]
    found = []
    for annotation in content["annotations"]:
        for _ in range(rng.integers(0, 3)):
            category = annotation["category_id"] if rng.random() < 0.8 else rng.choice(categories)
            box = _moved(annotation["bbox"], rng)
            found.append((annotation["image_id"], category, box))
    for image in content["images"]:
        found += [(image["id"], rng.choice(categories), _box(rng)) for _ in range(wrong)]
    return [
        {
            "image_id": image,
            "category_id": int(category),
            "bbox": [float(v) for v in box],
            "score": float(rng.random()),
            "segmentation": rle_of((*box[:3], max(1, 9 * box[3] // 10)), SIZE),
        }
        for image, category, box in found
    ]
