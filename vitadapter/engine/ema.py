"""Moving average of the weights during training."""

import logging
import math

import torch
from detectron2.engine import HookBase
from omegaconf import DictConfig, OmegaConf
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["EMAHook", "WeightEMA", "build_ema", "is_averaged"]

logger = logging.getLogger(__name__)


def _undistributed(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


class WeightEMA(ModelEmaV3):
    """timm's moving average of weights and buffers, with the official recipes' ramp.

    In iteration t, from 0, the average keeps the share `decay * (1 - exp(-(1 + t) / ramp_iters))`
    of itself and takes the rest from the model. Integer buffers are copied.

    Attributes:
        module: a copy of the model with the averaged weights, in evaluation mode.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.9999, ramp_iters: int = 0) -> None:
        """
        Args:
            model: on its device, possibly distributed.
            decay: share of itself that the average keeps in the end, in [0, 1).
            ramp_iters: time constant of the ramp in iterations; 0 for none.

        Raises:
            ValueError: `decay` outside [0, 1), a negative `ramp_iters`.
        """
        if not 0 <= decay < 1 or ramp_iters < 0:
            raise ValueError(
                f"decay must lie in [0, 1) and ramp_iters be >= 0, got {decay=}, {ramp_iters=}"
            )
        super().__init__(_undistributed(model), decay=decay)
        self.module.requires_grad_(False)
        self.ramp_iters = ramp_iters

    def get_decay(self, step: int | None = None) -> float:
        """Share that the average keeps of itself in an iteration; the final one for None."""
        if step is None or self.ramp_iters == 0:
            return self.decay
        return self.decay * -math.expm1(-(1 + step) / self.ramp_iters)

    def restore(
        self, averaged: dict[str, torch.Tensor] | None, model: nn.Module, path: str
    ) -> None:
        """Continues the average of a checkpoint, or starts one from the model.

        Args:
            averaged: state dict of `module`; None where the checkpoint has none.
            model: with the checkpoint's weights; possibly distributed.
            path: of the checkpoint, named in the warning.
        """
        if averaged is None:
            logger.warning("%s has no averaged weights: the average starts from its weights", path)
            self.set(_undistributed(model))
        else:
            self.module.load_state_dict(averaged)


class EMAHook(HookBase):
    """Averages the weights after each update.

    Register it before the hook that notes the iteration as complete.
    """

    def __init__(self, ema: WeightEMA, model: nn.Module) -> None:
        """
        Args:
            ema: of `model`.
            model: which is trained; possibly distributed.
        """
        self._ema = ema
        self._model = _undistributed(model)

    def after_step(self) -> None:
        """Takes the new weights into the average."""
        self._ema.update(self._model, self.trainer.iter)


def is_averaged(cfg: DictConfig) -> bool:
    """Whether the config averages its weights; configs of older versions do not say.

    Args:
        cfg: the whole config.
    """
    return bool(OmegaConf.select(cfg, "train.ema.enabled", default=False))


def build_ema(cfg: DictConfig, model: nn.Module) -> WeightEMA | None:
    """The average that `train.ema` of a config asks for, if any.

    Args:
        cfg: the whole config.
        model: on its device, possibly distributed.
    """
    if not is_averaged(cfg):
        return None
    ema = cfg.train.ema
    return WeightEMA(model, decay=ema.get("decay", 0.9999), ramp_iters=ema.get("ramp_iters", 0))
