"""Runs a trained model: batches, precision, test-time augmentation and tiles."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict

import torch
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.modeling import Backbone
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitadapter.data.transforms import augment
from vitadapter.engine.building import build
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.settings import AmpDtype, check_value
from vitadapter.modeling.image_record import ImageRecord
from vitadapter.modeling.inference import TiledInference, Tiles, predict_by_size

__all__ = [
    "InferenceModel",
    "apply_tiles",
    "apply_tta",
    "build_inference",
    "in_tiles",
    "needed_answer",
    "set_tiles",
    "tiles_of",
]

logger = logging.getLogger(__name__)


# What of a test data set says what a model has to answer.
_ANSWERS = {"label_root": "sem_seg", "panoptic_root": "panoptic_seg"}


def needed_answer(cfg: DictConfig) -> str | None:
    """The key of a model's output that the test data of a config asks for; None without any.

    Args:
        cfg: the whole config.
    """
    test = OmegaConf.select(cfg, "dataset.test")
    if test is None:
        return None
    return next((answer for key, answer in _ANSWERS.items() if key in test), "instances")


class InferenceModel(nn.Module):
    """Wraps a model for evaluation and prediction, as `train.inference` of a config says.

    Results do not depend on which images share a batch, see `vitadapter.modeling.inference`.

    Args:
        model: has Detectron2's standard input and output, and a `backbone`.
        amp_dtype: "float16" or "bfloat16" for mixed precision; None for the model's own type.
        tta: the same model wrapped for test-time augmentation, such as `DetectorWithTTA`;
            None for no augmentation.

    Raises:
        ValueError: any other `amp_dtype`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        amp_dtype: AmpDtype | None = None,
        tta: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_value("amp_dtype", AmpDtype | None, amp_dtype)
        self.model = model
        self.tta = tta
        self.amp_dtype = amp_dtype
        # Whatever evaluates a model restores the mode that it found.
        self.train(model.training)

    def forward(self, batched_inputs: Sequence[ImageRecord]) -> list[dict[str, object]]:
        """Returns the outputs for any number of images of any sizes, in their order."""
        device = next(self.model.parameters()).device
        dtype = None if self.amp_dtype is None else getattr(torch, self.amp_dtype)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            if self.tta is not None:
                return self.tta(batched_inputs)
            backbone: Backbone = self.model.backbone
            return predict_by_size(self.model, batched_inputs, backbone.size_divisibility)


def _enabled_tta(cfg: DictConfig) -> DictConfig | None:
    """`train.inference.tta` of a config; None if it is absent or switched off."""
    tta = OmegaConf.select(cfg, "train.inference.tta")
    if tta is None:
        return None
    if not isinstance(tta, DictConfig) or not {"enabled", "wrapper", "overrides"} <= set(tta):
        raise ValueError(
            "train.inference.tta must be a group of enabled, wrapper and overrides, as "
            f"configs/common/tta.py has it, got {tta!r}: train.inference.tta.enabled=True "
            "switches on the one that comes with a config"
        )
    if not isinstance(tta.enabled, bool):
        raise ValueError(f"train.inference.tta.enabled must be True or False, got {tta.enabled!r}")
    if tta.enabled and tta.wrapper is None:
        raise ValueError(
            "train.inference.tta.enabled=True, but this config comes without test-time "
            "augmentation: set train.inference.tta in a config file, for instance to "
            "get_config('common/tta.py').multi_scale_flip"
        )
    return tta if tta.enabled else None


def apply_tta(cfg: DictConfig) -> None:
    """Changes a config in place as its test-time augmentation needs it, if that is enabled.

    Test images are left as they are, since their versions are made from them, and the config's own
    `train.inference.tta.overrides` are applied. Call it before the model is built.

    Args:
        cfg: the whole config.

    Raises:
        ValueError: `train.inference.tta` is enabled but has no wrapper, or is not such a group.
    """
    tta = _enabled_tta(cfg)
    if tta is None:
        return
    overrides = ["dataloader.test.mapper.augmentations=[]", *tta.overrides]
    logger.info("Test-time augmentation sets %s", " ".join(overrides))
    apply_overrides(cfg, overrides)


def tiles_of(cfg: DictConfig) -> Tiles | None:
    """`train.inference.tiles` of a config; None if it is absent or has no size.

    Args:
        cfg: the whole config.

    Raises:
        ValueError: it is no group of the arguments of `Tiles`.
    """
    tiles = OmegaConf.select(cfg, "train.inference.tiles")
    if tiles is None:
        return None
    if not isinstance(tiles, DictConfig):
        raise ValueError(
            "train.inference.tiles must be a group of the arguments of Tiles, as "
            f"configs/common/train.py has it, got {tiles!r}: train.inference.tiles.size=800 "
            "predicts images in tiles of 800 x 800 pixels"
        )
    return None if tiles.get("size") is None else build(tiles, "train.inference.tiles")


def set_tiles(cfg: DictConfig, tiles: Tiles) -> None:
    """Makes a config in place predict images in tiles.

    Args:
        cfg: the whole config.
        tiles: in place of the config's `train.inference.tiles`.
    """
    if OmegaConf.select(cfg, "train.inference") is None:
        cfg.train.inference = L(InferenceModel)(model=None)
    cfg.train.inference.tiles = L(Tiles)(**asdict(tiles))


def apply_tiles(cfg: DictConfig) -> None:
    """Changes a config in place as its tiles need it, if `train.inference.tiles` has a size.

    The augmentations of test images become those of tiles, which are cut from whole images. Call it
    after `apply_tta` and before the test data is loaded.

    Args:
        cfg: the whole config.

    Raises:
        ValueError: see `tiles_of`.
    """
    if tiles_of(cfg) is None or "tile_augmentations" in cfg.train.inference:
        return
    cfg.train.inference.tile_augmentations = cfg.dataloader.test.mapper.augmentations
    cfg.dataloader.test.mapper.augmentations = []


def build_inference(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """Wraps `model` as `train.inference` of the config says; in a plain wrapper if it says nothing.

    Args:
        cfg: the whole config.
        model: the model, on its device and possibly distributed.

    Raises:
        ValueError: `train.inference` cannot be built, or builds something else than a module.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    inference = OmegaConf.select(cfg, "train.inference")
    if inference is None:
        return InferenceModel(model)
    tta = _enabled_tta(cfg)
    inference = copy.deepcopy(inference)
    inference.model = model
    if "tta" in inference:
        inference.tta = None if tta is None else tta.wrapper
    if tta is not None:
        inference.tta.model = model
    inference.pop("tiles", None)
    inference.pop("tile_augmentations", None)
    built = build(inference, "train.inference")
    if not isinstance(built, nn.Module):
        raise ValueError(f"train.inference must build a module, got {built!r}")
    return in_tiles(cfg, built)


def in_tiles(cfg: DictConfig, predict: nn.Module) -> nn.Module:
    """What predicts in tiles, if `train.inference.tiles` of a config has a size; else `predict`.

    Args:
        cfg: the whole config, after `apply_tiles`.
        predict: predicts a batch.
    """
    tiles = tiles_of(cfg)
    if tiles is None:
        return predict
    augmentations = cfg.train.inference.get("tile_augmentations", [])
    prepare = T.AugmentationList(build(augmentations, "dataloader.test.mapper.augmentations"))
    return TiledInference(predict, tiles, lambda tile: augment(prepare, tile).image)
