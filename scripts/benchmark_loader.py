#!/usr/bin/env python
"""Compares how fast workers with our mapper and with Detectron2's map training images.

Makes 16 photo-like JPEGs of 640 x 480 pixels with 7 polygons each, as COCO's are on average, and
maps them with the augmentations of three recipes, in one process for each mapper. Prints CPU
milliseconds per image, medians of rounds in which both take turns. Needs shapely (`pip install
shapely`), with which Detectron2's mapper crops polygons.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetMapper as Detectron2Mapper
from detectron2.structures import BoxMode

from vitadapter.data.dataset_mapper import DatasetMapper
from vitadapter.data.freed_memory import keep_freed_memory
from vitadapter.model_zoo import get_config

IMAGES, OBJECTS, HEIGHT, WIDTH = 16, 7, 480, 640
Record = Mapping[str, object]


def made_up(folder: Path) -> list[Record]:
    """Images with polygons of 20 corners, as data set dicts."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(IMAGES):
        coarse = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        noise = rng.integers(0, 12, image.shape, dtype=np.uint8)
        name = folder / f"{number}.jpg"
        cv2.imwrite(str(name), cv2.add(image, noise))
        annotations = []
        for _ in range(OBJECTS):
            centre, radius = rng.uniform(120, 360, 2), rng.uniform(8, 110)
            angles = np.sort(rng.uniform(0, 2 * np.pi, 20))
            points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            low, high = points.min(0), points.max(0)
            annotations.append(
                {
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": 0,
                    "iscrowd": 0,
                    "segmentation": [points.reshape(-1).tolist()],
                }
            )
        records.append({"file_name": str(name), "annotations": annotations, "image_id": number})
    return records


def mappers(recipe: str) -> tuple[Callable[[Record], object], Callable[[Record], object]]:
    """Detectron2's mapper and ours, with the augmentations of a recipe."""
    base = get_config("common/data/coco.py")
    base.model = {"input_format": "RGB", "pixel_mean": [123.675, 116.28, 103.53]}
    nodes = {
        "800 px": base.dataloader.train.mapper.augmentations,
        "multi-scale": base.multi_scale_augmentations,
        "LSJ": base.large_scale_jitter_augmentations,
    }
    base.node = nodes[recipe]
    augmentations = [instantiate(one) for one in base.node]
    recompute = recipe == "LSJ"
    theirs = Detectron2Mapper(
        is_train=True,
        augmentations=augmentations,
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask" if recompute else "polygon",
        recompute_boxes=recompute,
    )
    ours = DatasetMapper(
        is_train=True,
        augmentations=augmentations,
        image_format="RGB",
        use_instance_mask=True,
        recompute_boxes=recompute,
    )
    return theirs, ours


def serve(
    connection: Connection, mapper: Callable[[Record], object], records: list[Record]
) -> None:
    """Maps all images whenever it is asked to, and answers with the CPU seconds."""
    if isinstance(mapper, DatasetMapper):
        keep_freed_memory()  # as it does in a worker of a loader
    while connection.recv():
        # The same random numbers each time; Detectron2's augmentations draw from these.
        np.random.seed(0)  # noqa: NPY002
        start = time.process_time()
        for record in records:
            mapper(record)
        connection.send(time.process_time() - start)


def measure(recipe: str, records: list[Record], rounds: int) -> list[list[float]]:
    """CPU seconds of each round, of Detectron2's mapper and of ours."""
    processes = get_context("fork")
    workers = []
    for mapper in mappers(recipe):
        here, there = processes.Pipe()
        processes.Process(target=serve, args=(there, mapper, records), daemon=True).start()
        there.close()  # so that the end of the process is seen here
        workers.append(here)
    times: list[list[float]] = [[] for _ in workers]
    for number in range(rounds + 1):
        for worker, taken in zip(workers, times, strict=True):
            worker.send(True)
            try:
                seconds = worker.recv()
            except EOFError:
                sys.exit("error: the process of a mapper has failed (see above)")
            if number > 0:  # not that in which the process gets its memory
                taken.append(seconds)
    for worker in workers:
        worker.send(False)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians over")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        records = made_up(Path(folder))
        for recipe in ("800 px", "multi-scale", "LSJ"):
            theirs, ours = measure(recipe, records, args.rounds)
            shown = [1000 * median(taken) / len(records) for taken in (theirs, ours)]
            faster = median(a / b for a, b in zip(theirs, ours, strict=True))
            print(
                f"{recipe}: Detectron2 {shown[0]:.1f} ms, ours {shown[1]:.1f} ms; "
                f"ours is {faster:.2f} times as fast",
                flush=True,
            )


if __name__ == "__main__":
    main()
