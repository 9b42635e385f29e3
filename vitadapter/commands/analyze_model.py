"""`vitadapter analyze-model`: parameters and FLOPs of a config's model by part and operator.

Neither a GPU nor weights are needed: the model is built without memory. Only --measure runs it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from vitadapter.analysis import Workload, analyze_model
from vitadapter.analysis.activations import saved_activations, saved_table
from vitadapter.analysis.feature_scales import scale_table, scale_warnings, scales_of_config
from vitadapter.analysis.features import image_paths
from vitadapter.analysis.measurement import measure, measured_table
from vitadapter.commands.arguments import CONFIG, OVERRIDES, command_parser
from vitadapter.engine.overrides import load_config
from vitadapter.engine.settings import check_settings

_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x --size 800 1280
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x --batch 2 --activations --measure
  %(prog)s ADE20K/upernet_vit_adapter_s_dinov2_finetune --images photos/
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x model.backbone.bottom_up.num_interactions=2
"""


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> None:
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=[800, 1280],
        metavar=("HEIGHT", "WIDTH"),
        help="of the image, in pixels (default: 800 1280, as in the paper's table 7)",
    )
    parser.add_argument(
        "--activations",
        action="store_true",
        help="also print what each part keeps for the backward pass",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also run training and inference on train.device: time and peak memory",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="images and folders of images: also print how large the features of the net, with the "
        "weights of train.init_checkpoint, are beside the adapter's maps that they are added to",
    )
    parser.add_argument("--batch", type=int, default=1, help="images for these two (default: 1)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    args = parser.parse_intermixed_args(arguments)
    height, width = args.size
    try:
        cfg = load_config(args.config_file, args.overrides)
        print(analyze_model(cfg, (height, width)).table())
        if args.activations or args.measure:
            check_settings(cfg)
            workload = Workload((height, width), args.batch)
        if args.activations:
            print(f"\n{saved_table(saved_activations(cfg, workload), workload)}")
        if args.measure:
            print(f"\n{measured_table(measure(cfg, workload), workload, cfg.train.device)}")
        if args.images:
            _print_scales(cfg, image_paths(args.images))
    except ValueError as error:
        sys.exit(f"error: {error}")


def _print_scales(cfg: DictConfig, images: Sequence[Path]) -> None:
    weights = cfg.train.init_checkpoint or "random weights"
    scales = scales_of_config(cfg, images)
    print(f"\nStandard deviation by channel (median), {len(images)} images, {weights}:\n")
    print("\n".join([scale_table(scales), *scale_warnings(scales)]))


def script(arguments: Sequence[str] | None = None) -> None:
    """Runs with the options of `scripts/analyze_model.py`; `arguments` as for `main`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help=CONFIG)
    _run(parser, arguments)


def main(arguments: Sequence[str] | None = None, prog: str = "vitadapter analyze-model") -> None:
    """Prints the figures.

    Args:
        arguments: of the command line; None for those of the process.
        prog: name of the command in messages.
    """
    _run(command_parser(prog, str(__doc__), _EXAMPLES), arguments)
