"""Steps of training and inference on synthetic images, whose allocations are counted by kind."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitadapter.analysis.allocations import HOST, AllocationTracker
from vitadapter.analysis.synthetic_images import check_pixels, synthetic_images
from vitadapter.engine.building import build
from vitadapter.engine.inference import build_inference
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.settings import PositiveInt, check_settings, check_value
from vitadapter.engine.train_loop import AccumulatingTrainer
from vitadapter.engine.trainer import Batch, build_ema, build_trainer
from vitadapter.modeling.image_record import ImageRecord

__all__ = ["KINDS", "Steps", "Workload"]

KINDS = ("parameters", "gradients", "optimizer", "average", "activations", "temporary")
"""Of memory: `activations` are made in the forward pass, `temporary` tensors after it."""


@dataclass(frozen=True)
class Workload:
    """The images of a step.

    Args:
        size: (height, width) of each in pixels.
        batch: how many a device takes at once.
        objects: how many objects are in each, which decides how many regions and masks are trained.
            The fullest images of COCO have a hundred.

    Raises:
        ValueError: a number is not positive, or see `check_pixels`.
    """

    size: tuple[int, int]
    batch: int
    objects: int = 100

    def __post_init__(self) -> None:
        for name in ("batch", "objects"):
            check_value(name, PositiveInt, getattr(self, name))
        check_pixels(self.size, self.batch)

    def images(self, cfg: DictConfig) -> list[ImageRecord]:
        """Makes the images for the classes of a config's data set."""
        classes = OmegaConf.select(cfg, "dataset.num_classes", default=1)
        return synthetic_images(self.batch, self.size, objects=self.objects, num_classes=classes)


class _HostCopies(TorchFunctionMode):
    """Counts what is moved to the CPU as memory of the host, also where all tensors are there."""

    def __init__(self, tracker: AllocationTracker) -> None:
        super().__init__()
        self._tracker = tracker

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not Tensor.cpu:
            return func(*args, **(kwargs or {}))
        before, self._tracker.kind = self._tracker.kind, HOST
        try:
            return args[0].clone()
        finally:
            self._tracker.kind = before


class Steps:
    """A config's model, optimizer and averaged weights, with images for them.

    The optimizer has its state already, as after the first iteration.

    Args:
        cfg: the whole config; its data sets are not used.
        images: the batch of every step.
        device: where the model runs, instead of `train.device`.
        on_gpu: whether the optimizer updates all weights at once, as PyTorch does on a GPU only.

    Raises:
        ValueError: something cannot be built.
    """

    def __init__(
        self,
        cfg: DictConfig,
        images: list[ImageRecord],
        *,
        device: str = "cpu",
        on_gpu: bool = False,
    ) -> None:
        if "backbone" not in cfg.get("model", {}):
            raise ValueError("a config to run needs model.backbone, which this one lacks")
        self._cfg = copy.deepcopy(cfg)
        apply_overrides(self._cfg, [f"train.device={device}"])
        check_settings(self._cfg)
        self._images = images
        self._tracker = AllocationTracker()
        with self._tracker:
            model = build(self._cfg.model, "model")
            if device != "cpu":  # `to` fails for fake tensors
                model.to(device)
            self._trainer = build_trainer(self._cfg, model, itertools.repeat(cast(Batch, images)))
            if on_gpu:
                _update_at_once(self._trainer.optimizer)
            self._tracker.label([*model.parameters(), *model.buffers()], "parameters")
            self._tracker.kind = "average"
            self._ema = build_ema(self._cfg, model)
            self._tracker.kind = "optimizer"
            _fill_state(self._trainer)
        self._inference = build_inference(self._cfg, model)
        model.register_forward_pre_hook(lambda *_: self._enter("activations"))
        model.register_forward_hook(lambda *_: self._enter("temporary"))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._label_gradient)

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self._trainer.model

    @property
    def live_bytes(self) -> int:
        """What was in memory after the last count."""
        return self._tracker.live.total()

    def run_training(self) -> None:
        """Does an iteration of training."""
        self.model.train()
        with EventStorage(0):
            self._trainer.run_step()
        if self._ema is not None:
            self._ema.update(self.model, 0)

    @torch.no_grad()
    def run_inference(self, number: int | None = None) -> None:
        """Predicts the images.

        Args:
            number: of images, the first ones; None for all.
        """
        self._trainer.optimizer.zero_grad()
        self._inference.eval()(self._images[:number])

    def count_training(self) -> Counter[str]:
        """Does an iteration and returns its peak of memory in bytes, by kind."""
        return self._count(self.run_training)

    def count_inference(self) -> Counter[str]:
        """Predicts the images and returns the peak of memory in bytes, by kind."""
        self._trainer.optimizer.zero_grad()  # what training has left would hide the peak
        peak = self._count(self.run_inference)
        return Counter({kind: peak[kind] for kind in ("parameters", "activations", "temporary")})

    def _count(self, run: Callable[[], None]) -> Counter[str]:
        tracker = self._tracker
        with tracker, _HostCopies(tracker):
            tracker.kind = "temporary"
            tracker.reset_peak()
            run()
        return Counter({kind: size for kind, size in tracker.peak.items() if kind != HOST})

    def _enter(self, kind: str) -> None:
        self._tracker.kind = kind

    def _label_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._tracker.label([parameter.grad], "gradients")


def _update_at_once(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        if "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True


def _fill_state(trainer: AccumulatingTrainer) -> None:
    """Makes the optimizer's state, which it has from its first step on."""
    optimizer = trainer.optimizer
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the weights stay as they are
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
