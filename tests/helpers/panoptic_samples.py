"""Tiny COCO-format panoptic data sets: rectangles of things on two kinds of stuff."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from coco_samples import encode_mask
from PIL import Image

# Things and stuff by turns, in no order.
CATEGORIES = (
    {"id": 7, "name": "cat", "isthing": 1},
    {"id": 3, "name": "sky", "isthing": 0},
    {"id": 1, "name": "dog", "isthing": 1},
    {"id": 9, "name": "grass", "isthing": 0},
)
NAMES = ["dog", "cat", "sky", "grass"]  # as models number them
NUM_CLASSES, NUM_THINGS = 4, 2
CLASSES = dict(num_classes=NUM_CLASSES, num_things=NUM_THINGS)
SIZE = (48, 64)  # (height, width)

Content = dict[str, list[dict[str, object]]]


class PanopticFiles(NamedTuple):
    """Arguments of `load_panoptic_dataset`."""

    json_file: str
    panoptic_root: str
    image_root: str


def write_map(path: Path, ids: np.ndarray) -> None:
    """Segment ids (H, W) as the PNG of a panoptic map."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.zeros((*ids.shape, 3), dtype=np.uint8)
    for channel in range(3):
        colours[..., channel] = ids.astype(np.int64) >> (8 * channel) & 255
    Image.fromarray(colours).save(path)


def some_ids(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Sky 70000 over grass 300, a dog 5, a cat 66000, a crowd of cats 9, and void in a corner."""
    height, width = size
    ids = np.full(size, 300)
    ids[: height // 2] = 70000
    rng = np.random.default_rng(seed)
    for id_ in (5, 66000, 9):
        y, x = int(rng.integers(0, height // 2)), int(rng.integers(0, width // 2))
        ids[y : y + height // 3, x : x + width // 3] = id_
    ids[-4:, -6:] = 0
    return ids


MAPS = {name: some_ids(seed) for seed, name in enumerate("abc")}


SEGMENTS = {5: 1, 66000: 7, 9: 7, 70000: 3, 300: 9}
"""Category of each id in `some_ids`; 9 is a crowd."""


def make_content(maps: Mapping[str, np.ndarray], suffix: str = ".jpg") -> Content:
    content: Content = {
        "images": [],
        "annotations": [],
        "categories": [dict(category) for category in CATEGORIES],
    }
    for number, (name, ids) in enumerate(maps.items(), start=1):
        height, width = ids.shape
        content["images"].append(
            {"id": number, "file_name": f"{name}{suffix}", "height": height, "width": width}
        )
        segments = [
            {
                "id": id_,
                "category_id": category,
                "area": int((ids == id_).sum()),
                "iscrowd": int(id_ == 9),
            }
            for id_, category in SEGMENTS.items()
            if (ids == id_).any()
        ]
        content["annotations"].append(
            {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
        )
    return content


def write_panoptic(
    folder: Path, maps: Mapping[str, np.ndarray], content: Content | None = None
) -> PanopticFiles:
    """Writes images, in which each segment has a grey value of its own, maps and annotations."""
    content = make_content(maps) if content is None else content
    images, panoptic = folder / "images", folder / "panoptic"
    images.mkdir(parents=True, exist_ok=True)
    for image, ids in zip(content["images"], maps.values(), strict=False):
        path = images / str(image["file_name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey_of(ids)).convert("RGB").save(path)
    for name, ids in maps.items():
        write_map(panoptic / f"{name}.png", ids)
    json_file = folder / "panoptic.json"
    json_file.write_text(json.dumps(content))
    return PanopticFiles(str(json_file), str(panoptic), str(images))


def grey_of(ids: np.ndarray) -> np.ndarray:
    """A grey value for each id in `some_ids`, 0 for void."""
    grey = np.zeros(ids.shape, dtype=np.uint8)
    # Values that no two others have between them where an image is resized.
    for value, id_ in zip((31, 78, 123, 185, 246), SEGMENTS, strict=True):
        grey[ids == id_] = value
    return grey


def write_things(path: Path, content: Content, maps: Sequence[np.ndarray]) -> str:
    """The things once more, in COCO's instances format."""
    things = [category for category in CATEGORIES if category["isthing"]]
    annotations = []
    for annotation, ids in zip(content["annotations"], maps, strict=True):
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in [category["id"] for category in things]:
                continue
            rows, columns = np.nonzero(ids == segment["id"])
            x, y = int(columns.min()), int(rows.min())
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": annotation["image_id"],
                    "category_id": segment["category_id"],
                    "bbox": [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y],
                    "area": segment["area"],
                    "iscrowd": segment["iscrowd"],
                    "segmentation": encode_mask(ids == segment["id"]),
                }
            )
    path.write_text(
        json.dumps({"images": content["images"], "annotations": annotations, "categories": things})
    )
    return str(path)
