"""`vitadapter analyze-model`: parameters and FLOPs of a config's model by part and operator.

Neither a GPU nor weights are needed: the model is built without memory. Only --measure runs it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from vitadapter.analysis import Workload, analyze_model
from vitadapter.analysis.activations import saved_activations, saved_table
from vitadapter.analysis.feature_scales import scale_table, scale_warnings, scales_of_config
from vitadapter.analysis.measurement import measure, measured_table
from vitadapter.analysis.work import step_work, work_table
from vitadapter.commands.arguments import (
    CONFIG,
    OVERRIDES,
    command_parser,
    split_overrides,
)
from vitadapter.commands.errors import exit_on_errors
from vitadapter.data.image_files import image_paths
from vitadapter.engine.overrides import load_config
from vitadapter.engine.run_checks import check_device
from vitadapter.engine.settings import check_settings

_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x --size 800 1280
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x --batch 2 --activations --measure
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x --work train.amp.enabled=True
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
        "--work",
        action="store_true",
        help="also count the work of a training iteration on a GPU (kernel launches, bytes, FLOPs; "
        "forward and backward pass, precision train.amp), and the least time on some GPUs",
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
    parser.add_argument(
        "--batch",
        type=int,
        help="images for --activations, --work and --measure (default: 1); without these, FLOPs "
        "are those of one image",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    args = parser.parse_intermixed_args(arguments)
    with exit_on_errors():
        files, behind = split_overrides(args.images or [])
        if args.images and not files:
            raise ValueError(f"--images needs images or folders, got overrides alone: {behind}")
        cfg = load_config(args.config_file, [*args.overrides, *behind])
        _print(cfg, args, image_paths(files))


def _print(cfg: DictConfig, args: argparse.Namespace, images: Sequence[Path]) -> None:
    size = (args.size[0], args.size[1])
    workload = Workload(size, 1 if args.batch is None else args.batch)
    is_run = args.activations or args.work or args.measure
    if args.batch is not None and not is_run:
        raise ValueError(
            f"--batch={args.batch} is for --activations, --work and --measure, but none is given: "
            "FLOPs are those of one image"
        )
    if is_run or images:
        check_settings(cfg)
    if args.measure:
        check_device(cfg.train.device)
    print(analyze_model(cfg, size).table())
    if args.activations:
        print(f"\n{saved_table(saved_activations(cfg, workload), workload)}")
    if args.work:
        height, width = size
        title = f"training, {workload.batch} x {height} x {width}"
        print(f"\n{work_table(step_work(cfg, workload), title)}")
    if args.measure:
        print(f"\n{measured_table(measure(cfg, workload), workload, cfg.train.device)}")
    if images:
        _print_scales(cfg, images)


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
