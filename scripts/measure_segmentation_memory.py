#!/usr/bin/env python
"""Prints how much memory it takes to segment one large image, with random weights.

Add `train.inference.tta.enabled=True` to measure it with test-time augmentation.

Example: %(prog)s --size 4096 \\
    --config-file projects/ViTAdapter/configs/ADE20K/upernet_vit_adapter_t_deit_160k.py
"""

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import instantiate

from vitadapter.engine.inference import apply_tta, build_inference
from vitadapter.engine.overrides import load_config

GIB = 1024**3


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a LazyConfig")
    parser.add_argument(
        "--size", type=int, default=4096, help="height and width of the image in pixels"
    )
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="key=value; must come last")
    args = parser.parse_args(arguments)
    if not Path(args.config_file).is_file():
        parser.error(f"--config-file {args.config_file} does not exist or is a folder")
    if args.size < 1:
        parser.error(f"--size must be positive, got {args.size}")
    return args


def peak_bytes(device: torch.device) -> int:
    """The largest memory use so far, of the device or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # In KiB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    try:
        cfg = load_config(args.config_file, args.overrides)
        apply_tta(cfg)
    except ValueError as error:
        sys.exit(f"error: {error}")
    device = torch.device(cfg.train.device)
    model = build_inference(cfg, instantiate(cfg.model).to(device)).eval()
    image = torch.zeros(3, args.size, args.size, dtype=torch.uint8)
    before, started = peak_bytes(device), time.perf_counter()
    (output,) = model([{"image": image}])
    seconds = time.perf_counter() - started
    classes = output["sem_seg"].shape[0]
    print(f"{args.size} x {args.size} pixels, {classes} classes, {device}, {seconds:.0f} s")
    print(f"peak {peak_bytes(device) / GIB:.2f} GiB, of which {before / GIB:.2f} before the image")
    print(f"one map of all classes: {output['sem_seg'].nbytes / GIB:.2f} GiB")


if __name__ == "__main__":
    main()
