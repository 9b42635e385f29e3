"""Detections as COCO's evaluation server takes them."""

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["check_algorithm", "image_set_name", "write_submission"]

_ALGORITHM = re.compile(r"[\w.+-]+", re.ASCII)
# COCO recommends tenths of a pixel, to keep files small; a hundredth costs no AP for sure.
_BOX_DIGITS = 2
_SCORE_DIGITS = 6
_REGIONS = {"bbox": "bbox", "segm": "segmentation"}


def check_algorithm(algorithm: str) -> None:
    """
    Raises:
        ValueError: not a name that the server's file names can hold.
    """
    if not _ALGORITHM.fullmatch(algorithm):
        raise ValueError(
            "algorithm must be of letters, digits and _ . + - as a part of a file name, "
            f"got {algorithm!r}"
        )


def image_set_name(json_file: str | Path) -> str:
    """What COCO calls the images of a file: "test-dev2017" of "image_info_test-dev2017.json"."""
    return Path(json_file).stem.removeprefix("image_info_")


def _entry(result: Mapping[str, object], task: str) -> dict[str, object]:
    region = result[_REGIONS[task]]
    if task == "bbox":
        region = [round(value, _BOX_DIGITS) for value in region]
    return {
        "image_id": result["image_id"],
        "category_id": result["category_id"],
        _REGIONS[task]: region,
        "score": round(result["score"], _SCORE_DIGITS),
    }


def write_submission(
    results: Sequence[Mapping[str, object]],
    output_dir: str | Path,
    *,
    test_set: str,
    algorithm: str,
) -> list[Path]:
    """Writes `submission_{bbox,segm}/detections_{test_set}_{algorithm}_results.{json,zip}`.

    Boxes and masks are two uploads: where a mask has a box, the server's tools take the size of
    the object from the box.

    Args:
        results: in COCO's results format, with masks (compressed RLE) in all of them or in none.
        output_dir: folder that gets a folder for each task.
        test_set: such as "test-dev2017".
        algorithm: name of the entry.

    Returns:
        list[Path]: the zip files to upload.

    Raises:
        ValueError: a name that the server's file names cannot hold.
    """
    check_algorithm(algorithm)
    has_masks = len(results) > 0 and all("segmentation" in result for result in results)
    archives = []
    for task in ("bbox", "segm") if has_masks else ("bbox",):
        folder = Path(output_dir) / f"submission_{task}"
        folder.mkdir(parents=True, exist_ok=True)
        json_file = folder / f"detections_{test_set}_{algorithm}_results.json"
        entries = [_entry(result, task) for result in results]
        json_file.write_text(json.dumps(entries, separators=(",", ":")))
        archives.append(json_file.with_suffix(".zip"))
        with zipfile.ZipFile(archives[-1], "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(json_file, json_file.name)
    return archives
