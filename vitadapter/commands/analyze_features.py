"""Draws feature maps of several models side by side, and their Fourier spectra over many images."""

import argparse
from collections.abc import Sequence

from vitadapter.analysis.features import analyze_features
from vitadapter.commands.arguments import (
    CONFIG,
    OVERRIDES,
    WEIGHTS,
    named,
    weights_of,
)
from vitadapter.commands.errors import exit_on_errors
from vitadapter.data.image_files import image_paths
from vitadapter.engine.launch import check_alone
from vitadapter.engine.overrides import load_config
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.visualization.gallery import choose_images

_EXAMPLE = """
example:
  %(prog)s photos/ --output features/ \\
      --run ViT output/vit/config.yaml output/vit/model_final.pth \\
      --run ViT-Adapter COCO/mask_rcnn_vit_adapter_s_deit_3x zoo
"""


def parse_args(
    arguments: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images and folders of images")
    parser.add_argument(
        "--run",
        dest="runs",
        action="append",
        nargs=3,
        required=True,
        metavar=("NAME", "CONFIG", "WEIGHTS"),
        help=f"a model; may be repeated. CONFIG: {CONFIG}. WEIGHTS: {WEIGHTS}, or '' for random",
    )
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument(
        "--num-images",
        type=int,
        default=100,
        help="spectra are averaged over at most this many (default: 100, as in the paper)",
    )
    parser.add_argument(
        "--num-pictures", type=int, default=4, help="draw maps of this many images (default: 4)"
    )
    parser.add_argument("--seed", type=int, default=0, help="selects the images (default: 0)")
    parser.add_argument(
        "--overrides",
        nargs="+",
        default=[],
        metavar="key=value",
        help=f"for all runs: {OVERRIDES}",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Draws the figures, and prints the amplitudes of high frequencies.

    Args:
        arguments: of the command line; None for those of the process.
        prog: name of the command in messages.
    """
    args = parse_args(arguments, prog)
    with exit_on_errors():
        check_alone()
        images = choose_images(image_paths(args.images), args.num_images, args.seed)
        runs = named((name, (config, weights)) for name, config, weights in args.runs)
        predictors = {
            name: LazyPredictor(
                load_config(config, args.overrides), weights_of(config, weights, args.overrides)
            )
            for name, (config, weights) in runs.items()
        }
        table, written = analyze_features(
            predictors, images, args.output, num_pictures=args.num_pictures
        )
    print(table, f"Averaged over {len(images)} images.", sep="\n\n")
    print("written:", *written)
