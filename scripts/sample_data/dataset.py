"""A small instance and semantic segmentation data set made without any download.

Real handwritten digits on crops of real photographs, in the format of COCO::

    DIR/train/000001.jpg ...           DIR/val/...
    DIR/annotations/instances_train.json, instances_val.json
    DIR/sem_seg/train/000001.png ...   DIR/sem_seg/val/...
    DIR/foreground/train/000001.png ...  DIR/foreground/val/...
    DIR/dataset.json                   the arguments, and whether the set is complete

Masks are run lengths (RLE), not polygons: polygons cannot state holes (0, 6, 8, 9) and would
overlap where digits occlude each other. Detectron2 reads them with ``mask_format="bitmask"``.
Label maps hold 0 for the background and elsewhere the category id (digit + 1) in ``sem_seg``, 1 in
``foreground``; no pixel is ignored.

Beyond COCO's keys, images state their ``photo`` and its ``crop`` (x, y, w, h in pixels of the
photo, resized to the image), and annotations the ``digit_index`` into scikit-learn's digits.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from vitadapter.sample_data.scene import PlacedDigit, Scene, draw_scene
from vitadapter.sample_data.sources import (
    DIGIT_SOURCE,
    PHOTO_SOURCES,
    SPLITS,
    DigitPool,
    load_digit_pools,
    load_photos,
)

__all__ = ["MAX_SIZE", "MIN_SIZE", "make_sample_dataset"]

logger = logging.getLogger(__name__)

# Change it with anything that changes the bytes written: a set of another version is not reused.
FORMAT_VERSION = 2
MIN_SIZE = 64
# The narrowest strip of a photo that val crops from is 135 pixels wide (chelsea), and crops are
# enlarged at most twice.
MAX_SIZE = 256
MANIFEST = "dataset.json"
LABEL_MAPS = ("sem_seg", "foreground")
SOURCES = (*PHOTO_SOURCES, DIGIT_SOURCE)
LICENSE_IDS = {source.key: index for index, source in enumerate(SOURCES, start=1)}

Json = dict[str, object]


@dataclass(frozen=True)
class _Arguments:
    num_train: int
    num_val: int
    size: int
    seed: int
    format_version: int = FORMAT_VERSION

    def num_images(self, split: str) -> int:
        return {"train": self.num_train, "val": self.num_val}[split]


def _check_arguments(out: Path, arguments: _Arguments) -> None:
    for name, value in asdict(arguments).items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {value!r}")
    for name in ("num_train", "num_val"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(arguments, name)}")
    if not MIN_SIZE <= arguments.size <= MAX_SIZE:
        raise ValueError(
            f"size must be between {MIN_SIZE} and {MAX_SIZE} pixels (the photos allow no more), "
            f"got {arguments.size}"
        )
    if arguments.seed < 0:
        raise ValueError(f"seed must not be negative, got {arguments.seed}")
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"out must be a folder, but {existing} is a file (got out={out})")


def _read_manifest(out: Path) -> tuple[_Arguments, bool] | None:
    """The arguments of the set in ``out`` and whether it was finished; None without a set."""
    try:
        content = json.loads((out / MANIFEST).read_text())
        arguments = _Arguments(**content["arguments"])
        if any(type(value) is not int for value in asdict(arguments).values()):
            return None
        return arguments, content["complete"] is True
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def _write_manifest(out: Path, arguments: _Arguments, complete: bool) -> None:
    content = {"arguments": asdict(arguments), "complete": complete}
    draft = out / f"{MANIFEST}.tmp"
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(out / MANIFEST)


def _annotation_file(out: Path, split: str) -> Path:
    return out / "annotations" / f"instances_{split}.json"


def _image_file(out: Path, split: str, image_id: int) -> Path:
    return out / split / f"{image_id:06d}.jpg"


def _label_file(out: Path, kind: str, split: str, image_id: int) -> Path:
    return out / kind / split / f"{image_id:06d}.png"


def _files(out: Path, arguments: _Arguments) -> Iterator[Path]:
    """Every file of a set but the manifest."""
    for split in SPLITS:
        yield _annotation_file(out, split)
        for image_id in range(1, arguments.num_images(split) + 1):
            yield _image_file(out, split, image_id)
            for kind in LABEL_MAPS:
                yield _label_file(out, kind, split, image_id)


def _holds_set(out: Path, arguments: _Arguments, overwrite: bool) -> bool:
    """Whether ``out`` holds the finished set; refuses a folder that holds anything else.

    The same set in an older format counts as one to be finished.

    Raises:
        ValueError: ``out`` holds another set, or files in the way of one, without ``overwrite``.
    """
    found = _read_manifest(out)
    if found is not None and found[0] == arguments:
        return found[1] and all(path.is_file() for path in _files(out, arguments))
    outdated = found is not None and replace(found[0], format_version=FORMAT_VERSION) == arguments
    if overwrite or outdated:
        return False
    advice = "choose another folder or pass --overwrite (overwrite=True)"
    if found is not None:
        raise ValueError(
            f"{out} holds a sample data set made with {asdict(found[0])}, "
            f"asked for {asdict(arguments)}: {advice}"
        )
    names = (*SPLITS, "annotations", *LABEL_MAPS, MANIFEST)
    occupied = [name for name in names if (out / name).exists()]
    if occupied:
        raise ValueError(
            f"{out} already holds {', '.join(occupied)}, but no readable {MANIFEST} that says how "
            f"they were made: {advice}"
        )
    return False


def _remove_stale(out: Path, arguments: _Arguments) -> None:
    """Delete what an earlier set wrote and the new one will not write again, and nothing else."""
    found = _read_manifest(out)
    if found is not None:
        for path in set(_files(out, found[0])) - set(_files(out, arguments)):
            path.unlink(missing_ok=True)


def _annotation(digit: PlacedDigit, image_id: int, annotation_id: int) -> Json:
    rle = mask_util.encode(np.asfortranarray(digit.mask, dtype=np.uint8))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": digit.label + 1,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "area": int(mask_util.area(rle)),
        "bbox": mask_util.toBbox(rle).tolist(),
        "iscrowd": 0,
        "digit_index": digit.sample,
    }


def _image_entry(scene: Scene, image_id: int, file_name: str) -> Json:
    height, width = scene.image.shape[:2]
    return {
        "id": image_id,
        "file_name": file_name,
        "height": height,
        "width": width,
        "license": LICENSE_IDS[scene.photo],
        "photo": scene.photo,
        "crop": list(scene.crop),
    }


def _description(split: str, arguments: _Arguments) -> Json:
    """The parts of an annotation file that do not depend on the images."""
    licenses = [
        {
            "id": LICENSE_IDS[source.key],
            "name": source.license_name,
            "url": source.license_url,
            "work": source.title,
            "author": source.author,
            "source": source.source_url,
            "package": source.package,
        }
        for source in SOURCES
    ]
    info = {
        "description": (
            f"vitadapter sample data set, {split} split: crops of photographs (the licence of "
            "each image) with recoloured handwritten digits (licence "
            f"{LICENSE_IDS[DIGIT_SOURCE.key]}) pasted on them"
        ),
        "version": str(FORMAT_VERSION),
        "arguments": asdict(arguments),
    }
    categories = [
        {"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)
    ]
    return {"info": info, "licenses": licenses, "categories": categories}


def _write_images(scene: Scene, out: Path, split: str, image_id: int) -> None:
    labels = np.zeros(scene.image.shape[:2], dtype=np.uint8)
    for digit in scene.digits:
        labels[digit.mask] = digit.label + 1
    # Full chroma resolution: digits differ from what is around them in colour, often in hue alone.
    image_file = _image_file(out, split, image_id)
    Image.fromarray(scene.image).save(image_file, quality=92, subsampling=0)
    foreground = (labels > 0).astype(np.uint8)
    for kind, label_map in zip(LABEL_MAPS, (labels, foreground), strict=True):
        Image.fromarray(label_map).save(_label_file(out, kind, split, image_id))


def _write_split(
    out: Path,
    split: str,
    arguments: _Arguments,
    photos: Mapping[str, np.ndarray],
    pool: DigitPool,
    on_image: Callable[[], object],
) -> None:
    images: list[Json] = []
    annotations: list[Json] = []
    for image_id in range(1, arguments.num_images(split) + 1):
        # A stream of its own per image: the first images of a larger set are those of a smaller.
        rng = np.random.default_rng([arguments.seed, SPLITS.index(split), image_id])
        scene = draw_scene(rng, split, photos, pool, arguments.size)
        image_file = _image_file(out, split, image_id)
        _write_images(scene, out, split, image_id)
        images.append(_image_entry(scene, image_id, image_file.name))
        for digit in scene.digits:
            annotations.append(_annotation(digit, image_id, len(annotations) + 1))
        on_image()
    content = _description(split, arguments) | {"images": images, "annotations": annotations}
    _annotation_file(out, split).write_text(json.dumps(content) + "\n")


def _no_progress() -> None:
    """Stands in for a progress callback."""


def make_sample_dataset(
    out: str | Path,
    num_train: int = 800,
    num_val: int = 160,
    size: int = 128,
    seed: int = 0,
    *,
    overwrite: bool = False,
    on_image: Callable[[], object] = _no_progress,
) -> bool:
    """Write the sample data set, unless ``out`` already holds it.

    The same arguments give the same bytes (with the same versions of NumPy and Pillow). A set
    with the same arguments that was interrupted, or lost files, is written again in place. Train
    and val share neither digit samples nor photo regions.

    Args:
        out: folder of the data set, made when absent.
        num_train: number of training images.
        num_val: number of held-out images.
        size: side of the square images in pixels, ``MIN_SIZE`` to ``MAX_SIZE``.
        seed: not negative; decides everything.
        overwrite: replace the different set that ``out`` may hold. Files that are not part of
            either set stay.
        on_image: called after each image, for a progress bar.

    Returns:
        whether anything was written; False when the set was already there.

    Raises:
        TypeError, ValueError: an argument is out of its range, ``out`` is a file, or ``out``
            holds something else and ``overwrite`` is False.
        ImportError: scikit-image or scikit-learn is absent.
    """
    out = Path(out)
    arguments = _Arguments(num_train, num_val, size, seed)
    _check_arguments(out, arguments)
    if _holds_set(out, arguments, overwrite):
        logger.info("%s already holds the sample data set", out)
        return False
    # Before anything is touched: optional packages may be missing.
    photos, pools = load_photos(), load_digit_pools(seed)
    _remove_stale(out, arguments)
    for folder in {path.parent for path in _files(out, arguments)}:
        folder.mkdir(parents=True, exist_ok=True)
    _write_manifest(out, arguments, complete=False)
    for split in SPLITS:
        _write_split(out, split, arguments, photos, pools[split], on_image)
    _write_manifest(out, arguments, complete=True)
    return True
