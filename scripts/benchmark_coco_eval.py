#!/usr/bin/env python
"""Compares how fast pycocotools and hotcoco compute COCO's metrics, and whether they agree.

Makes up images with objects of 80 classes, crowds among them, and detections, some of which lie
near objects and some of which have equal scores. Evaluates them with pycocotools' `COCOeval` and
with `HotCocoEval`, and prints the CPU seconds of reading the detections, matching and accumulating,
and whether all precisions, recalls and scores are equal to the last bit. Needs hotcoco
(`pip install 'vitadapter[fast-eval]'`). Exits with 1 if a figure differs.
"""

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitadapter.evaluation.hotcoco import HotCocoEval

HEIGHT, WIDTH, CLASSES, CORNERS = 480, 640, 80, 12
FIGURES = ("precision", "recall", "scores")
Region = dict[str, object]


def region(rng: np.random.Generator, near: Sequence[float] | None = None) -> Region:
    """A polygon as run lengths and its box (x, y, w, h) in pixels, near another box if given."""
    if near is None:
        box = np.array([*rng.uniform(0, (WIDTH - 150, HEIGHT - 150)), *rng.uniform(8, 150, 2)])
    else:
        box = np.maximum(np.asarray(near) + rng.normal(0, 3, 4), (0, 0, 4, 4))
    angles = np.sort(rng.uniform(0, 2 * np.pi, CORNERS))
    corners = box[:2] + box[2:] * (0.5 + 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    (mask,) = mask_util.frPyObjects([corners.reshape(-1).tolist()], HEIGHT, WIDTH)
    return {"bbox": box.tolist(), "segmentation": mask, "area": float(mask_util.area(mask))}


def made_up(images: int, detections: int) -> tuple[COCO, list[Region]]:
    """Annotations of so many images, and so many detections in each."""
    rng = np.random.default_rng(0)
    objects: list[Region] = []
    found: list[Region] = []
    for image in range(1, images + 1):
        here = []
        for _ in range(rng.integers(0, 15)):
            labels = {"image_id": image, "category_id": int(rng.integers(1, CLASSES + 1))}
            here.append({**region(rng), **labels, "iscrowd": int(rng.random() < 0.05)})
        objects += here
        for number in range(detections):
            near = here[number] if number < len(here) else None
            label = near["category_id"] if near else int(rng.integers(1, CLASSES + 1))
            shape = region(rng, near["bbox"] if near else None)
            score = round(float(rng.random()), 3)
            found.append({**shape, "image_id": image, "category_id": label, "score": score})
    api = COCO()
    api.dataset = {
        "images": [{"id": n, "height": HEIGHT, "width": WIDTH} for n in range(1, images + 1)],
        "categories": [{"id": n, "name": str(n)} for n in range(1, CLASSES + 1)],
        "annotations": [{**one, "id": n} for n, one in enumerate(objects, start=1)],
    }
    api.createIndex()
    return api, found


def evaluated(
    kind: type[COCOeval], api: COCO, found: list[Region], task: str
) -> tuple[COCOeval, float]:
    """An evaluation, and its CPU seconds."""
    other = "bbox" if task == "segm" else "segmentation"
    results = [{key: value for key, value in one.items() if key != other} for one in found]
    start = time.process_time()
    evaluation = kind(api, api.loadRes(results), task)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation, time.process_time() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison, and returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000, metavar="N", help="default: 5000")
    parser.add_argument(
        "--detections", type=int, default=100, metavar="N", help="in each image (default: 100)"
    )
    args = parser.parse_args(arguments)
    for option, value in vars(args).items():
        if value < 1:
            parser.error(f"--{option} must be at least 1, got {value}")
    equal = True
    with contextlib.redirect_stdout(io.StringIO()):  # what pycocotools prints
        api, found = made_up(args.images, args.detections)
    print(f"{len(api.imgs)} images, {len(api.anns)} objects, {len(found)} detections", flush=True)
    for task in ("bbox", "segm"):
        with contextlib.redirect_stdout(io.StringIO()):
            ours, fast = evaluated(HotCocoEval, api, found, task)
            theirs, slow = evaluated(COCOeval, api, found, task)
        differ = [key for key in FIGURES if not np.array_equal(ours.eval[key], theirs.eval[key])]
        equal = equal and not differ
        verdict = f"{', '.join(differ)} differ" if differ else "all figures are equal"
        times = f"pycocotools {slow:.1f} s, HotCocoEval {fast:.1f} s"
        print(f"{task}: {times}; {slow / fast:.1f} times as fast; {verdict}", flush=True)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
