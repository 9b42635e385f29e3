#!/usr/bin/env python
"""Merges all categories of a COCO json file into one, for class-agnostic detection.

Example: %(prog)s instances_train.json objects_train.json, then train with dataset.num_classes=1
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vitadapter.data.coco.annotations import parse_coco
from vitadapter.data.coco.json_entries import read_json


def merge_categories(json_file: Path, name: str) -> dict[str, object]:
    """The content of a COCO json with one category, whose id is 1."""
    content = read_json(json_file)
    if not parse_coco(content, str(json_file)).has_annotations:
        raise ValueError(f"{json_file} has no annotations")
    annotations = [
        {**annotation, "id": number, "category_id": 1}
        for number, annotation in enumerate(content["annotations"], start=1)
    ]
    return {**content, "categories": [{"id": 1, "name": name}], "annotations": annotations}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and writes the json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json_file", type=Path, help="annotations in COCO's format")
    parser.add_argument("output", type=Path, help="file to write, which must not exist yet")
    parser.add_argument("--name", default="object", help="name of the merged category")
    args = parser.parse_args(arguments)
    try:
        content = merge_categories(args.json_file, args.name)
        with args.output.open("x") as file:
            json.dump(content, file)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
