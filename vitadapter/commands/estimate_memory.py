"""`vitadapter estimate-memory`: whether training fits a GPU, without a GPU and without the memory.

A training step and inference run on fake tensors, and the tensors that would be alive at the same
time are counted. With --gpu-memory, prints the largest batch that fits and what saves memory, which
takes a few minutes.
"""

import argparse
import logging
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from vitadapter.analysis import Workload, estimate_memory, largest_batch, savings
from vitadapter.analysis.fitting import most_images
from vitadapter.analysis.memory import GIB, PARALLEL
from vitadapter.commands.arguments import CONFIG, OVERRIDES, command_parser
from vitadapter.commands.errors import exit_on_errors
from vitadapter.engine.overrides import load_config
from vitadapter.engine.run_checks import check_micro_batches
from vitadapter.engine.settings import PositiveInt, check_settings, check_value

_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x --batch 2 --gpu-memory 24
  %(prog)s COCO/mask_rcnn_vit_adapter_l_augreg_1x --ranks 8 --parallel fsdp2 train.amp.enabled=True
"""
# The largest images of the recipes for COCO.
_DETECTION_SIZE = (800, 1333)


def _workload(cfg: DictConfig, args: argparse.Namespace) -> Workload:
    """The images that are asked for, or else those of the config."""
    check_value("--ranks", PositiveInt, args.ranks)
    batch = args.batch
    if batch is None:
        check_micro_batches(cfg, args.ranks)
        total = OmegaConf.select(cfg, "dataloader.train.total_batch_size", default=1)
        batch = total // (args.ranks * cfg.train.accumulate_steps)
    crop = OmegaConf.select(cfg, "dataset.crop.size")
    height, width = args.size or ((crop, crop) if crop is not None else _DETECTION_SIZE)
    return Workload((height, width), batch, args.objects)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images, in pixels (default: the config's crop, or 800 1333)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        help="images that a GPU takes at once (default: the config's total batch over --ranks)",
    )
    parser.add_argument(
        "--objects",
        type=int,
        default=Workload.objects,
        help="objects in each image (default: %(default)s, as in the fullest images of COCO)",
    )
    parser.add_argument("--ranks", type=int, default=1, help="number of GPUs (default: 1)")
    parser.add_argument(
        "--parallel",
        choices=list(PARALLEL),
        help="how these share the work, as train.parallel says (default: what the config has)",
    )
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help="memory of a GPU, in GiB")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def _print(cfg: DictConfig, args: argparse.Namespace) -> None:
    check_settings(cfg)
    workload = _workload(cfg, args)
    # One GPU has nothing to share, whatever a config says.
    default = cfg.train.parallel if args.ranks > 1 else "ddp"
    sharing = {"ranks": args.ranks, "parallel": args.parallel or default}
    print(estimate_memory(cfg, workload, **sharing).table(), flush=True)
    if args.gpu_memory is None:
        return
    largest = largest_batch(cfg, workload, args.gpu_memory, **sharing)
    more = " or more" if largest == most_images(workload) else ""
    print(f"\nLargest batch that fits {args.gpu_memory:g} GiB: {largest}{more}\n", flush=True)
    print("Peak of training with one change each:")
    for saving in savings(cfg, workload, **sharing):
        print(f"  {saving.peak / GIB:7.2f} GiB  {saving.change}")


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> None:
    _add_options(parser)
    args = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vitadapter.analysis").setLevel(logging.INFO)
    with exit_on_errors():
        _print(load_config(args.config_file, args.overrides), args)


def script(arguments: Sequence[str] | None = None) -> None:
    """Runs with the options of `scripts/estimate_memory.py`; `arguments` as for `main`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help=CONFIG)
    _run(parser, arguments)


def main(arguments: Sequence[str] | None = None, prog: str = "vitadapter estimate-memory") -> None:
    """Prints the estimate.

    Args:
        arguments: of the command line; None for those of the process.
        prog: name of the command in messages.
    """
    _run(command_parser(prog, str(__doc__), _EXAMPLES), arguments)
