"""Writes data sets in the formats of others, from the content of COCO's json files.

Written from the descriptions of the formats, and apart from the package's readers.
"""

import base64
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as mask_util

Content = dict[str, list[dict[str, object]]]
Splits = Mapping[str, tuple[Content, Path]]
"""Content of the json file and folder of the images, of each split."""


def _images(content: Content) -> list[tuple[dict[str, object], list[dict[str, object]]]]:
    """Each image with its annotations, in the order of the files' names."""
    images = sorted(content["images"], key=lambda image: image["file_name"])
    return [(i, [a for a in content["annotations"] if a["image_id"] == i["id"]]) for i in images]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def _names(splits: Splits) -> dict[int, str]:
    content, _ = splits["train"]
    return {category["id"]: category["name"] for category in content["categories"]}


def write_roboflow_coco(folder: Path, splits: Splits) -> None:
    """`train/_annotations.coco.json` beside the images, with a dead parent class 0."""
    for split, (content, images) in splits.items():
        split = {"val": "valid"}.get(split, split)
        for image in content["images"]:
            _copy(images / image["file_name"], folder / split / image["file_name"])
        parent = {"id": 0, "name": "things", "supercategory": "none"}
        classes = [{**c, "supercategory": "things"} for c in content["categories"]]
        content = {**content, "categories": [parent, *classes]}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))


def write_yolo(folder: Path, splits: Splits, *, polygons: bool) -> None:
    """`data.yaml`, `train/images`, `train/labels`, as Roboflow and Ultralytics have them."""
    names = _names(splits)
    numbers = {id_: number for number, id_ in enumerate(names)}
    for split, (content, images) in splits.items():
        split = {"val": "valid"}.get(split, split)
        for image, annotations in _images(content):
            name, w, h = image["file_name"], image["width"], image["height"]
            _copy(images / name, folder / split / "images" / name)
            lines = []
            for a in annotations:
                if polygons:
                    (points,) = a["segmentation"]
                    parts = [v / (h if i % 2 else w) for i, v in enumerate(points)]
                else:
                    x, y, bw, bh = a["bbox"]
                    parts = [(x + bw / 2) / w, (y + bh / 2) / h, bw / w, bh / h]
                lines.append(f"{numbers[a['category_id']]} {' '.join(map(str, parts))}")
            label = folder / split / "labels" / Path(name).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("\n".join(lines))
    description = {
        "train": "../train/images",
        "val": "../valid/images",
        "nc": len(names),
        "names": list(names.values()),
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(description, allow_unicode=True))


def write_voc(folder: Path, splits: Splits) -> None:
    """`JPEGImages`, `Annotations` and `ImageSets/Main`; corners are pixels counted from 1."""
    names = _names(splits)
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names.values()))
    for split, (content, images) in splits.items():
        stems = []
        for image, annotations in _images(content):
            name = image["file_name"]
            stems.append(Path(name).stem)
            _copy(images / name, folder / "JPEGImages" / name)
            objects = ""
            for a in annotations:
                x, y, w, h = a["bbox"]
                corners = math.floor(x) + 1, math.floor(y) + 1, math.ceil(x + w), math.ceil(y + h)
                objects += (
                    f"<object><name>{escape(names[a['category_id']])}</name>"
                    f"<difficult>{a['iscrowd']}</difficult><bndbox>"
                    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>".format(*corners)
                    + "</bndbox></object>"
                )
            text = f"<annotation><filename>{name}</filename>{objects}</annotation>"
            (folder / "Annotations" / f"{stems[-1]}.xml").write_text(text)
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(stems))


def write_labelme(folder: Path, splits: Splits) -> None:
    """`train/NAME.json` beside the images; parts of an object share a group, RLE is a PNG."""
    names = _names(splits)
    (folder).mkdir(parents=True, exist_ok=True)
    (folder / "labels.txt").write_text("__ignore__\n_background_\n" + "\n".join(names.values()))
    for split, (content, images) in splits.items():
        for image, annotations in _images(content):
            name = image["file_name"]
            _copy(images / name, folder / split / name)
            shapes = []
            for number, a in enumerate(annotations):
                label = {"label": names[a["category_id"]], "group_id": None, "flags": {}}
                mask = a.get("segmentation")
                if mask is None:
                    x, y, w, h = a["bbox"]
                    shape = {"shape_type": "rectangle", "points": [[x, y], [x + w, y + h]]}
                    shapes.append({**label, **shape})
                elif isinstance(mask, dict):
                    shapes.append({**label, **_png_shape(mask)})
                else:
                    label["group_id"] = number if len(mask) > 1 else None
                    for polygon in mask:
                        points = np.reshape(polygon, (-1, 2)).tolist()
                        shapes.append({**label, "shape_type": "polygon", "points": points})
            size = {"imageHeight": image["height"], "imageWidth": image["width"]}
            text = json.dumps({"version": "5.4.1", "shapes": shapes, "imagePath": name, **size})
            (folder / split / Path(name).with_suffix(".json")).write_text(text)


def _png_shape(rle: dict[str, object]) -> dict[str, object]:
    mask = mask_util.decode(rle).astype(bool)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y0, y1, x0, x1 = rows[0], rows[-1], columns[0], columns[-1]
    buffer = io.BytesIO()
    Image.fromarray(mask[y0 : y1 + 1, x0 : x1 + 1]).save(buffer, "PNG")
    points = [[int(x0), int(y0)], [int(x1), int(y1)]]
    coded = base64.b64encode(buffer.getvalue()).decode()
    return {"shape_type": "mask", "points": points, "mask": coded}
