#!/usr/bin/env python
"""Checks that a detector can learn, by overfitting a small version of it to a few images.

The config's detector is built with a quarter of its channels on a small ViT. From a COCO json file,
it takes the images whose smallest object is largest, trains on them and evaluates on the same
images. Exits with an error if the box AP is not above --min-ap.

Example: %(prog)s --config-file projects/ViTAdapter/configs/COCO/atss_vit_adapter_s_deit_3x.py \\
    --data ../shared/data/coco_mini --output-dir output/overfit_atss
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.utils.logger import setup_logger
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import DictConfig, ListConfig

from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.trainer import do_train
from vitadapter.solver import warm_up

SHRUNK = 4
SAMPLED_BOXES = 64
CHANNEL_KEYS = frozenset(
    {"channels", "in_channels", "out_channels", "conv_dim", "conv_dims", "fc_dim", "fc_dims"}
)


def choose_images(json_file: Path, number: int, output: Path) -> None:
    """Writes a COCO json with the images whose smallest objects are largest, without crowds."""
    content = json.loads(json_file.read_text())
    objects: dict[int, list[dict[str, object]]] = {}
    for annotation in content["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)

    def smallest_side(image: dict[str, int]) -> float:
        found = objects.get(image["id"], [])
        if not found or any(annotation.get("iscrowd") for annotation in found):
            return 0.0
        sides = [min(annotation["bbox"][2:]) for annotation in found]
        return min(sides) / min(image["width"], image["height"])

    images = sorted(content["images"], key=smallest_side, reverse=True)[:number]
    annotations = [annotation for image in images for annotation in objects[image["id"]]]
    output.write_text(json.dumps({**content, "images": images, "annotations": annotations}))


def divide_channels(node: DictConfig | ListConfig) -> None:
    """Divides every number of channels by `SHRUNK`, in place."""
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        child = node._get_node(key)
        if isinstance(child, DictConfig | ListConfig) and child._value() is not None:
            if key in CHANNEL_KEYS:
                node[key] = [channels // SHRUNK for channels in child]
            else:
                divide_channels(child)
        elif key in CHANNEL_KEYS and isinstance(child._value(), int):
            node[key] = child._value() // SHRUNK


def cut_down(cfg: DictConfig) -> None:
    """Makes a detector with few channels and few sampled boxes over a small ViT without windows."""
    divide_channels(cfg.model)
    if "roi_heads" in cfg.model:
        cfg.model.roi_heads.batch_size_per_image = SAMPLED_BOXES
    if "num_proposals" in cfg.model:  # Sparse R-CNN's learnt boxes
        cfg.model.num_proposals = SAMPLED_BOXES
        cfg.model.max_detections_per_image = SAMPLED_BOXES
    wrapper = cfg.model.backbone
    while "net" not in wrapper:
        wrapper = wrapper.bottom_up
    net = wrapper.net
    net.embed_dim, net.num_heads, net.depth = 96, 3, 4
    net.drop_path_rate = 0.0
    net.window_size, net.window_block_indexes = 0, []
    if "global_window_size" in net:  # BEiT would pad small images to its global window
        net.global_window_size = 0
    if "residual_block_indexes" in net:  # BEiT and Uni-Perceiver do not have it
        net.residual_block_indexes = []
    if "deform_num_heads" in wrapper:
        wrapper.deform_num_heads, wrapper.deform_ratio = 3, 1.0
    if "block_indexes" in wrapper:
        wrapper.block_indexes = [0, 1, 2, 3]


def overfit(cfg: DictConfig, args: argparse.Namespace) -> float:
    """Trains on the chosen images; returns their box AP."""
    cut_down(cfg)
    output = args.output_dir
    output.mkdir(parents=True, exist_ok=True)
    chosen = output / "images.json"
    choose_images(args.data / "annotations" / "instances_train.json", args.images, chosen)
    for part in (cfg.dataset.train, cfg.dataset.test):
        part.json_file, part.image_root = str(chosen), str(args.data / "images" / "train")
    resize = L(T.ResizeShortestEdge)(
        short_edge_length=(args.size,), sample_style="choice", max_size=2 * args.size
    )
    for loader in (cfg.dataloader.train, cfg.dataloader.test):
        loader.mapper.augmentations = [resize]
        loader.num_workers = 0
    cfg.dataloader.train.mapper.instance_augmentation = None
    cfg.dataloader.train.total_batch_size = args.batch
    cfg.optimizer.lr = args.lr
    cfg.lr_multiplier = L(warm_up)(
        scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
        max_iter="${train.max_iter}",
        warmup_iters=50,
        warmup_factor=0.001,
    )
    train = cfg.train
    train.output_dir = str(output)
    train.init_checkpoint = ""  # no published weights fit the small net
    train.max_iter, train.log_period, train.eval_period = args.iterations, 20, 0
    train.checkpointer.period = args.iterations
    train.amp.enabled = train.ema.enabled = False
    apply_overrides(cfg, args.opts)
    return do_train(cfg)["bbox"]["AP"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and overfits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the detector")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with images/ and annotations/"
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="a new folder")
    parser.add_argument("--images", type=int, default=8, help="number of images (default: 8)")
    parser.add_argument("--batch", type=int, default=4, help="images per iteration (default: 4)")
    parser.add_argument("--size", type=int, default=192, help="short edge in pixels (default: 192)")
    parser.add_argument(
        "--iterations", type=int, default=600, help="training iterations (default: 600)"
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (default: 0.001)")
    parser.add_argument("--min-ap", type=float, default=90.0, help="box AP to exceed (default: 90)")
    parser.add_argument("opts", nargs="*", help="overrides: key=value ...")
    args = parser.parse_args(arguments)
    setup_logger(name="detectron2")
    setup_logger(name="vitadapter")
    try:
        ap = overfit(LazyConfig.load(args.config_file), args)
    except SetupError as error:
        sys.exit(f"error: {error}")
    print(f"box AP {ap:.1f} on {args.images} images after {args.iterations} iterations")
    if ap <= args.min_ap:
        sys.exit(f"error: the box AP must be above {args.min_ap}")


if __name__ == "__main__":
    main()
