#!/usr/bin/env python
"""Converts a checkpoint of another project to this project's names.

Training and evaluation convert checkpoints themselves (train.init_checkpoint=...). Use this script
for files that are used elsewhere. Tensors keep their sizes; they are resized when a model loads the
file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vitadapter.checkpoint import FAMILIES, fetch, find_family, read_state_dict, recognise
from vitadapter.checkpoint.fitting import check_dense, check_finite
from vitadapter.checkpoint.loading import LoadReport

SUFFIXES = (".pth", ".safetensors")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", help="file, URL, hf://org/repo/file or timm://name")
    parser.add_argument(
        "output", type=Path, help=f"file to write, which ends in {' or '.join(SUFFIXES)}"
    )
    parser.add_argument(
        "--family",
        default="auto",
        choices=["auto", *(family.name for family in FAMILIES)],
        help="default: recognised from the tensors' names",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args(arguments)
    if args.output.suffix not in SUFFIXES:
        parser.error(f"output must end in {' or '.join(SUFFIXES)}, got {args.output}")
    if args.output.is_dir():
        parser.error(f"output must be a file, but {args.output} is a folder")
    if args.output.exists() and not args.overwrite:
        parser.error(f"{args.output} exists: add --overwrite to replace it")
    if not args.output.absolute().parent.is_dir():
        parser.error(f"the folder of {args.output} does not exist")
    return args


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes to a temporary file and renames it, so that the output is complete or missing."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        if path.suffix == ".safetensors":
            save_file(tensors, partial)
        else:
            torch.save({"model": tensors}, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    families = FAMILIES if args.family == "auto" else [find_family(args.family)]
    try:
        state_dict = read_state_dict(fetch(args.input))
        check_dense(state_dict, allow_meta=False)
        family = recognise(state_dict, families)
        conversion = family.convert(state_dict)
        check_finite(conversion.tensors)
    except (ValueError, LookupError, RuntimeError) as error:  # the last two are for odd shapes
        print(f"error: {error}", file=sys.stderr)
        return 1
    # Each tensor gets its own memory, because safetensors refuses shared storage.
    tensors = {name: tensor.clone().contiguous() for name, tensor in conversion.tensors.items()}
    try:
        save(tensors, args.output)
    except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch's is a RuntimeError
        print(f"error: {args.output} cannot be written: {error}", file=sys.stderr)
        return 1
    implied = {"implied": {}}  # not known without a net
    report = LoadReport(**(vars(conversion) | implied), source=args.input, family=family.name)
    print(report.summary())
    print(f"names are those of the {conversion.scope}, written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
