"""`vitadapter export`: a trained model in a file that runs without its config."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from vitadapter.commands.arguments import OVERRIDES, WEIGHTS, command_parser, weights_of
from vitadapter.data.image_files import image_paths
from vitadapter.engine.overrides import load_config
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.engine.run_checks import setup_errors
from vitadapter.export import ExportedPredictor, export
from vitadapter.export.formats import FORMATS
from vitadapter.export.precision import PRECISIONS
from vitadapter.export.verification import Verdict, Verify, verify_on_dataset, verify_on_images
from vitadapter.known_warnings import without_known_warnings

__all__ = ["main"]

_DESCRIPTION = """\
Writes a trained model to a file that runs without its config: a program of torch.export (.pt2), the
same compiled by AOTInductor (.pt2 with --format aoti), ONNX (.onnx), or OpenVINO (.xml, with a .bin
beside it).

The file takes `images` (1, 3, H, W) of any size, uint8 in the model's channel order, normalises and
pads them, and returns boxes, scores, classes and masks, or class logits. LoRA's
updates are merged into the weights. Its answers are compared with the model's before it is written;
--verify and --verify-dataset compare more. `vitadapter predict FILE photo.jpg` uses it.
"""
_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x detector.onnx
  %(prog)s output/model_final.pth detector.pt2     # a checkpoint carries its config
  %(prog)s output/model_final.pth detector.onnx --verify photos/
  %(prog)s output/model_final.pth detector.onnx --full-size    # masks as large as the image
  %(prog)s output/model_final.pth detector.xml --precision bf16 --verify-dataset
  %(prog)s output/model_final.pth detector.xml --precision int8 --calibrate photos/
"""


def _verify(args: argparse.Namespace, cfg: DictConfig) -> list[Verify]:
    """The comparisons that are asked for, before anything takes long."""
    comparisons = []
    if args.verify is not None:
        comparisons.append(verify_on_images(image_paths([args.verify])))
    if args.verify_dataset:
        comparisons.append(verify_on_dataset(cfg))
    return [_printed(verify) for verify in comparisons]


def _printed(verify: Verify) -> Verify:
    def run(model: LazyPredictor, exported: ExportedPredictor) -> Verdict:
        verdict = verify(model, exported)
        print(f"{verdict.table}\n")
        return verdict

    return run


def _run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.overrides)
    calibration = [] if args.calibrate is None else image_paths([args.calibrate])
    verify = _verify(args, cfg)
    weights = weights_of(args.config_file, args.weights, args.overrides)
    size = None if args.size is None else (args.size[0], args.size[1])
    difference = export(
        cfg,
        args.format,
        args.output,
        weights=weights,
        only_backbone=args.backbone,
        full_size=args.full_size,
        size=size,
        precision=PRECISIONS[args.precision],
        calibration=calibration,
        verify=verify,
        force=args.force,
    )
    compared = "not compared" if args.format == "tensorrt" else f"differs by {difference:.1e}"
    print(f"{args.output}: {args.precision}, images of {args.size or 'any size'}, {compared}")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, _DESCRIPTION, _EXAMPLES)
    parser.add_argument("output", type=Path, metavar="FILE", help="to write: .pt2, .onnx or .xml")
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        help="by default, what the file's ending says (.pt2: torch); aoti is compiled, tensorrt "
        "is ONNX with TensorRT's plugin",
    )
    parser.add_argument("--backbone", action="store_true", help="only the maps of the backbone")
    parser.add_argument(
        "--full-size",
        action="store_true",
        help="paste masks and merge panoptic segments inside the file, which takes the size of "
        "the answers, `output_size`, as a second input",
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="only for padded images of this size"
    )
    parser.add_argument("--weights", default="zoo", help=f"{WEIGHTS} (default: zoo)")
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        default="fp32",
        help="of matrix products and convolutions (default: fp32)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="images, for int8: about a hundred of the kind that the model is for",
    )
    parser.add_argument(
        "--verify", metavar="FOLDER", help="compare the answers for these images as well"
    )
    parser.add_argument(
        "--verify-dataset",
        action="store_true",
        help="compare AP, mIoU or PQ on the config's test set as well",
    )
    parser.add_argument("--force", action="store_true", help="write it even if its answers differ")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="key=value", help=OVERRIDES)
    return parser


def main(arguments: Sequence[str], prog: str = "vitadapter export") -> int:
    """Exports a model.

    Args:
        arguments: of the command line.
        prog: name of the command in messages.

    Returns:
        The exit status.
    """
    parser = _parser(prog)
    args = parser.parse_args(arguments)
    by_suffix = {each.suffix: name for name, each in reversed(FORMATS.items())}
    if args.output.suffix not in by_suffix:
        parser.error(f"the file must end in {' or '.join(by_suffix)}, got {args.output}")
    args.format = args.format or by_suffix[args.output.suffix]
    for suffix in (args.output.suffix, *FORMATS[args.format].companions):
        if (file := args.output.with_suffix(suffix)).exists() and not args.overwrite:
            parser.error(f"{file} exists: add --overwrite to replace it")
    if not args.output.absolute().parent.is_dir():
        parser.error(f"the folder of {args.output} does not exist")
    try:
        with setup_errors(), without_known_warnings():
            _run(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
