"""Runs a trained model: batches, precision and test-time augmentation."""

import copy
import logging
from collections.abc import Sequence

import torch
from detectron2.modeling import Backbone
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitadapter.engine.building import build
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.settings import AmpDtype, check_value
from vitadapter.modeling.image_record import ImageRecord
from vitadapter.modeling.inference import predict_by_size

__all__ = ["InferenceModel", "apply_tta", "build_inference"]

logger = logging.getLogger(__name__)


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
    built = build(inference, "train.inference")
    if not isinstance(built, nn.Module):
        raise ValueError(f"train.inference must build a module, got {built!r}")
    return built
