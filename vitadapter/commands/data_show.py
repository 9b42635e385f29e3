"""`vitadapter data show`: the images of a config with their annotations, as the model gets them."""

import argparse
import copy
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from vitadapter.commands.arguments import OVERRIDES, command_parser
from vitadapter.data.dataset_mapper import RecordMapper, Sample
from vitadapter.data.dataset_source import Record, spread
from vitadapter.data.object_sizes import ModelScales, ObjectSizes
from vitadapter.engine.building import build
from vitadapter.engine.overrides import load_config
from vitadapter.engine.predictor import class_metadata
from vitadapter.visualization.gallery import choose_images
from vitadapter.visualization.object_plots import plot_objects
from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.predictions import class_names
from vitadapter.visualization.sample_sheets import PER_SHEET, Tile, draw_sample, draw_sheet

__all__ = ["MappedSplit", "show"]

_NUM_MEASURED = 200  # images whose objects are measured, which takes seconds
_DESCRIPTION = """\
Draws images of a config's data set with their boxes, masks, label maps or segments, and plots how
large their objects are when the model sees them, beside its strides and anchors.

Annotations that are not trained on, such as crowds, are counted and not drawn.
"""
_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_dinov2_finetune dataset.root=my_data
  %(prog)s COCO/mask_rcnn_vit_adapter_s_dinov2_finetune dataset.root=my_data --augmented
  %(prog)s output/config.yaml --split test --images 48 --output sheets/
"""


class MappedSplit:
    """The images of a split of a config, mapped with the targets that training has.

    Args:
        cfg: a whole config.
        name: of the split, "train" or "test".

    Raises:
        ValueError: the config has no such split, or its data cannot be used.

    Attributes:
        records: the data set dicts.
    """

    def __init__(self, cfg: DictConfig, name: str) -> None:
        loaders = [
            key
            for key, loader in (cfg.get("dataloader") or {}).items()
            if isinstance(loader, DictConfig) and {"dataset", "mapper"} <= set(loader)
        ]
        if name not in loaders or "train" not in loaders:
            raise ValueError(
                f"--split {name} needs dataloader.{name} and dataloader.train of the config, with "
                f"dataset and mapper; it has {', '.join(loaders) or 'neither'}"
            )
        self._cfg = cfg
        self._name = name
        self.records: Sequence[Record] = build(
            cfg.dataloader[name].dataset, f"dataloader.{name}.dataset"
        )

    def mapper(self, *, augmented: bool) -> RecordMapper:
        """The mapper of training, with the split's own augmentations or without any."""
        cfg = copy.deepcopy(self._cfg)
        mapper = cfg.dataloader.train.mapper
        augmentations = cfg.dataloader[self._name].mapper.augmentations
        mapper.augmentations = augmentations if augmented else []
        if mapper.get("instance_augmentation") and not (augmented and self._name == "train"):
            mapper.instance_augmentation = None
        if mapper.get("recompute_boxes") and not augmented:
            mapper.recompute_boxes = False
        return build(mapper, "dataloader.train.mapper")

    def mapped(
        self, records: Sequence[Record], seed: int, *, augmented: bool
    ) -> Iterator[tuple[Record, Sample]]:
        """Those of some records that can be mapped; the others are named in warnings.

        Args:
            records: data set dicts.
            seed: of the augmentations.
            augmented: whether the split's augmentations are applied.
        """
        mapper = self.mapper(augmented=augmented)
        mapper.max_skipped = len(records) + 1
        for at, record in enumerate(tqdm(records, desc="images", leave=False)):
            seed_all_rng(seed + at)
            sample = mapper(record)
            if sample is not None:
                yield record, sample


def _note(record: Record) -> str:
    """What is not drawn of an image."""
    listed = record.get("annotations") or record.get("segments_info") or ()
    crowds = sum(bool(entry.get("iscrowd")) for entry in listed)
    return f", {crowds} crowd{'s' * (crowds > 1)} left out" if crowds else ""


def _save_sheets(tiles: Sequence[Tile], palette: Palette, stem: Path) -> list[Path]:
    written = []
    for number, at in enumerate(range(0, len(tiles), PER_SHEET), start=1):
        path = stem.with_name(f"{stem.name}_{number}.png")
        Image.fromarray(draw_sheet(tiles[at : at + PER_SHEET], palette)).save(path)
        written.append(path)
    return written


def _draw(
    cfg: DictConfig, split: MappedSplit, args: argparse.Namespace, palette: Palette
) -> list[Path]:
    """Draws the sheets."""
    chosen = choose_images(range(len(split.records)), args.images, args.seed)
    records = [split.records[index] for index in chosen]
    image_format = cfg.dataloader.train.mapper.image_format
    tiles = [
        draw_sample(sample, image_format, palette, _note(record))
        for record, sample in split.mapped(records, args.seed, augmented=args.augmented)
    ]
    if not tiles:
        raise ValueError(f"none of the {len(chosen)} chosen images can be used")
    name = f"{args.split}{'_augmented' * args.augmented}"
    return _save_sheets(tiles, palette, Path(args.output, name))


def _measure(
    cfg: DictConfig, split: MappedSplit, args: argparse.Namespace, palette: Palette
) -> list[Path]:
    """Draws the plots, and prints figures and advice."""
    sizes = ObjectSizes(OmegaConf.select(cfg, "dataset.num_things"))
    ignore_label = OmegaConf.select(cfg, "dataset.ignore_label")
    measured = spread(split.records, _NUM_MEASURED)
    for _, sample in split.mapped(measured, args.seed, augmented=True):
        sizes.add(sample, ignore_label)
    scales = ModelScales.of_config(OmegaConf.to_container(cfg.model, resolve=True))
    print(f"{args.split}: {sizes.summary()}")
    if advice := sizes.advice(scales):
        print(f"advice: {advice}")
    if not sizes.per_image:
        return []
    path = Path(args.output, f"{args.split}_objects.png")
    title = (
        f"{len(measured)} of {len(split.records)} images of {args.split}, as the model sees them"
    )
    plot_objects(sizes, scales, palette, path, title)
    return [path]


def _show(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.overrides)
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} must be a folder, but it is a file")
    split = MappedSplit(cfg, args.split)
    palette = Palette(class_names(class_metadata(cfg)))
    output.mkdir(parents=True, exist_ok=True)
    written = _draw(cfg, split, args, palette) + _measure(cfg, split, args, palette)
    print(f"written: {', '.join(map(str, written))}")


def show(arguments: Sequence[str], prog: str = "vitadapter data show") -> int:
    """Draws images of a config with their annotations, and plots how large the objects are.

    Args:
        arguments: of the command line.
        prog: name of the command in messages.

    Returns:
        The exit status.
    """
    parser = command_parser(prog, _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--split", default="train", help="train or test (default: train)")
    parser.add_argument(
        "--augmented", action="store_true", help="draw the very images that the model gets"
    )
    parser.add_argument("--images", type=int, default=24, help="how many to draw (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: 0)")
    parser.add_argument("--output", default="shown", help="folder to write (default: shown)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    args = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        _show(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
