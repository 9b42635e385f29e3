"""`vitadapter export`: the backbone of a model as a program of `torch.export`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vitadapter.commands.arguments import OVERRIDES, WEIGHTS, command_parser, weights_of
from vitadapter.engine.overrides import load_config
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.model_zoo import config_file
from vitadapter.modeling.backbone import merge_lora

__all__ = ["check_equal", "export_backbone", "main"]

_DESCRIPTION = """\
Writes the backbone of a model (with its pyramid) for images of one size, in batches of any size.

The program takes normalised images (B, 3, H, W) and returns a dict of feature maps. LoRA's updates
are merged into the weights. The program is compared with the model before it is written. Load it
with `import vitadapter.ops` and `torch.export.load(FILE).module()`.
"""
_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x backbone.pt2 --size 800 1216
  %(prog)s output/config.yaml backbone.pt2 --size 512 512 --weights output/model_final.pth
"""
# Relative to the largest number of a map; float32 rounds differently in another order.
_TOLERANCE = 1e-4


def export_backbone(backbone: nn.Module, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """Exports a backbone, with LoRA's updates merged into the weights.

    Args:
        backbone: in evaluation mode; takes (B, 3, H, W) and returns feature maps by name.
        size: height H and width W of the images in pixels.

    Returns:
        A program for batches of any size.
    """
    parameter = next(backbone.parameters())
    images = torch.zeros(2, 3, *size, device=parameter.device, dtype=parameter.dtype)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(merge_lora(backbone), (images,), dynamic_shapes=({0: batch},))


def check_equal(
    program: torch.export.ExportedProgram, backbone: nn.Module, size: tuple[int, int]
) -> float:
    """Compares a program with the backbone that it was exported from, on random images.

    Args:
        program: of `export_backbone`.
        backbone: in evaluation mode.
        size: height H and width W of the images in pixels.

    Returns:
        The largest difference, relative to the largest number of its map.

    Raises:
        ValueError: they differ.
    """
    parameter = next(backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, *size, generator=generator).to(parameter)
    with torch.no_grad():
        expected: dict[str, Tensor] = backbone(images)
        got = program.module()(images)
    difference = max(
        float((got[name] - value).abs().max() / value.abs().max().clamp(min=1e-12))
        for name, value in expected.items()
    )
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"the exported program must equal the model within {_TOLERANCE}, got {difference:.1e}"
        )
    return difference


def _run(args: argparse.Namespace) -> None:
    cfg = load_config(str(config_file(args.config_file)), args.overrides)
    predictor = LazyPredictor(cfg, weights_of(args.config_file, args.weights))
    backbone, size = predictor.model.backbone, tuple(args.size)
    program = export_backbone(backbone, size)
    difference = check_equal(program, backbone, size)
    partial = args.output.with_name(f"{args.output.name}.partial")
    try:
        # A file object, because torch.export.save insists on the suffix .pt2.
        with partial.open("wb") as file:
            torch.export.save(program, file)
        partial.replace(args.output)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{args.output}: images (B, 3, {size[0]}, {size[1]}), differs by {difference:.1e}")


def main(arguments: Sequence[str], prog: str = "vitadapter export") -> int:
    """Exports the backbone of a model.

    Args:
        arguments: of the command line.
        prog: name of the command in messages.

    Returns:
        The exit status.
    """
    parser = command_parser(prog, _DESCRIPTION, _EXAMPLES)
    parser.add_argument("output", type=Path, metavar="FILE.pt2", help="file to write")
    parser.add_argument(
        "--size", type=int, nargs=2, required=True, metavar=("H", "W"), help="of images, in pixels"
    )
    parser.add_argument("--weights", default="zoo", help=f"{WEIGHTS} (default: zoo)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="key=value", help=OVERRIDES)
    args = parser.parse_args(arguments)
    if args.output.suffix != ".pt2":
        parser.error(f"the file must end in .pt2, got {args.output}")
    if args.output.exists() and not args.overwrite:
        parser.error(f"{args.output} exists: add --overwrite to replace it")
    if not args.output.absolute().parent.is_dir():
        parser.error(f"the folder of {args.output} does not exist")
    if min(args.size) < 1:
        parser.error(f"--size must be positive, got {args.size[0]} {args.size[1]}")
    try:
        _run(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
