"""Small data sets of two splits, and what a config loads of a folder."""

import copy
from functools import cache
from pathlib import Path

from coco_samples import make_content, write_coco
from detectron2.config import LazyConfig, instantiate
from folder_formats import Splits
from omegaconf import DictConfig

from vitadapter.data.folders import resolve_root
from vitadapter.engine.overrides import apply_overrides

TINY_CONFIG = Path(__file__).with_name("tiny_mask_rcnn.py")

Records = list[dict[str, object]]


def sample_splits(folder: Path, masks: str = "polygon") -> Splits:
    """Four images for training and two others for evaluation."""
    splits = {}
    for split, first, last in (("train", 0, 4), ("val", 4, 6)):
        content = make_content(6, masks=masks)
        for key, field in (("images", "id"), ("annotations", "image_id")):
            content[key] = [entry for entry in content[key] if first < entry[field] <= last]
        splits[split] = (content, Path(write_coco(folder / split, content)[1]))
    return splits


@cache
def _tiny_config() -> DictConfig:
    return LazyConfig.load(str(TINY_CONFIG))


def tiny_config(root: Path, *overrides: str) -> DictConfig:
    """The tiny Mask R-CNN on a folder, as `load_config` returns it."""
    cfg = copy.deepcopy(_tiny_config())
    overrides = (f"dataset.root={root}", *overrides)
    return resolve_root(apply_overrides(cfg, overrides), overrides)


def load(cfg: DictConfig) -> tuple[Records, Records]:
    """The data set dicts of training and evaluation."""
    return instantiate(cfg.dataloader.train.dataset), instantiate(cfg.dataloader.test.dataset)
