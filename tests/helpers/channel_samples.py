"""Images of five channels that are no colours: 16-bit numbers of different ranges."""

import json
from pathlib import Path

import numpy as np
import tifffile
from coco_samples import make_content
from sem_seg_samples import some_labels, write_labels

CHANNELS = 5
MEAN = [100.0, 2000.0, 30.0, 40000.0, 5.0]
STD = [50.0, 1000.0, 10.0, 9000.0, 2.0]
OVERRIDES = [f"model.pixel_mean={MEAN}".replace(" ", ""), f"model.pixel_std={STD}".replace(" ", "")]


def some_channels(seed: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 5) uint16."""
    drawn = np.random.default_rng(seed).normal(MEAN, STD, (*size, CHANNELS))
    return drawn.clip(0, 65535).astype(np.uint16)


def write_channels(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")


def write_objects(folder: Path) -> list[str]:
    """A COCO data set of `.npy` files; returns the overrides that name it."""
    content = make_content(images=2, size=64)
    for number, image in enumerate(content["images"]):
        image["file_name"] = f"{number}.npy"
        write_channels(folder / "images" / image["file_name"], some_channels(number, (64, 64)))
    (folder / "objects.json").write_text(json.dumps(content))
    return [
        f"dataset.{role}.{key}={folder / name}"
        for role in ("train", "test")
        for key, name in (("json_file", "objects.json"), ("image_root", "images"))
    ]


def write_label_maps(folder: Path) -> list[str]:
    """Label maps of three classes and `.tif` images; returns the overrides that name them."""
    for number in range(2):
        write_channels(folder / "images" / f"{number}.tif", some_channels(number, (32, 48)))
        write_labels(folder / "labels" / f"{number}.png", some_labels(number, (32, 48)))
    return [
        f"dataset.{role}.{key}={folder / name}"
        for role in ("train", "test")
        for key, name in (("label_root", "labels"), ("image_root", "images"))
    ]
