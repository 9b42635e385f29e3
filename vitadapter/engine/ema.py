"""Moving average of the weights during training."""

import copy
import logging
import math
from collections.abc import Mapping

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vitadapter.checkpoint.sharded import divide_like, local_part
from vitadapter.engine.settings import Decay, NotNegativeInt, check_value

__all__ = ["EMAHook", "WeightEMA"]

logger = logging.getLogger(__name__)


def _tensors(model: nn.Module) -> list[Tensor]:
    """Weights and buffers, of sharded ones this process's part; shared ones appear once."""
    return [local_part(tensor) for tensor in (*model.parameters(), *model.buffers())]


class WeightEMA:
    """Exponential moving average of the weights and buffers of a model.

    In iteration t, counted from 0, the average keeps the share
    `decay * (1 - exp(-(1 + t) / ramp_iters))` of itself and takes the rest from the model. The ramp
    is that of the official recipes. Integer buffers are copied. The update is that of PyTorch's
    `AveragedModel`, which has no ramp and waits for the device in each iteration. timm's
    `ModelEmaV3` would update a shared weight twice and leave out non-persistent buffers.

    Args:
        model: on its device; not the wrapper of a distributed one.
        decay: the share of itself that the average keeps after the ramp, in [0, 1).
        ramp_iters: time constant of the ramp in iterations; 0 for no ramp.

    Attributes:
        module: a copy of the model with the averaged weights, in evaluation mode.

    Raises:
        ValueError: `decay` is outside of [0, 1), or `ramp_iters` is negative.
    """

    def __init__(self, model: nn.Module, *, decay: float, ramp_iters: int) -> None:
        check_value("decay", Decay, decay)
        check_value("ramp_iters", NotNegativeInt, ramp_iters)
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.ramp_iters = ramp_iters

    @torch.no_grad()
    def reset(self, model: nn.Module) -> None:
        """Restarts the average from the weights of the model."""
        for average, current in zip(_tensors(self.module), _tensors(model), strict=True):
            average.copy_(current)

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        """Adds the weights of the model after an iteration, counted from 0, to the average."""
        ramp = -math.expm1(-(1 + iteration) / self.ramp_iters) if self.ramp_iters else 1.0
        averages, currents = [], []
        for average, current in zip(_tensors(self.module), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                currents.append(current)
            else:
                average.copy_(current)
        get_ema_multi_avg_fn(self.decay * ramp)(averages, currents, 0)

    def restore(self, state: Mapping[str, Tensor] | None, model: nn.Module, path: str) -> None:
        """Continues the average of a checkpoint, or starts one from its weights.

        Args:
            state: state dict of `module`; None if the checkpoint has none.
            model: the model, with the weights of the checkpoint.
            path: the file name of the checkpoint, for messages.

        Raises:
            ValueError: the average is that of another model.
        """
        if state is None:
            logger.warning("%s has no averaged weights: the average starts from its weights", path)
            self.reset(model)
            return
        try:
            self.module.load_state_dict(divide_like(state, self.module.state_dict()))
        except RuntimeError as error:
            raise ValueError(f"the averaged weights of {path} do not fit: {error}") from error


class EMAHook(HookBase):
    """Updates the average of the weights after each iteration.

    Register it before the hook that marks the iteration as complete.

    Args:
        ema: the average of the weights of `model`.
        model: the model that is trained.
    """

    def __init__(self, ema: WeightEMA, model: nn.Module) -> None:
        self._ema = ema
        self._model = model

    def after_step(self) -> None:
        """Adds the new weights to the average."""
        self._ema.update(self._model, self.trainer.iter)
