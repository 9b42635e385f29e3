"""Detectron2's training loop with micro-batches, mixed precision and a stop at infinity or NaN.

Losses and gradients are checked before each update, so that neither ever reaches the weights.
"""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple

import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from vitadapter.checkpoint.sharded import local_part
from vitadapter.engine.data_order import Batch, OrderedLoader
from vitadapter.engine.failures import (
    LostProcessError,
    OtherProcessError,
    is_failure_of_other,
    share_failure,
    tell_of_failures,
)
from vitadapter.engine.progress import peak_memory_mb
from vitadapter.engine.settings import AmpSettings, PositiveInt, check_value
from vitadapter.engine.signals import StopSignals
from vitadapter.solver.gradient_norm import total_norm

__all__ = ["AccumulatingTrainer"]

# What Detectron2's loop says is said as before.
detectron2_logger = logging.getLogger(SimpleTrainer.__module__)

# The smallest scale of a float16 loss: if gradients overflow even then, no scale will help.
_MIN_SCALE = 2.0**-16

# The time that is left is estimated by the median of so many iterations; all else looks at fewer.
_HISTORY_LENGTH = 1000

Losses = dict[str, float]
Places = list[list[object] | None]


class _Report(NamedTuple):
    """What a process tells the others about an iteration."""

    losses: list[Losses]  # of each micro-batch
    data_time: float
    images: int
    memory_mb: float | None  # the largest so far
    suspects: list[str]  # images of the micro-batches whose losses are not finite
    place: list[object] | None  # in the data, after these micro-batches


def _image_name(sample: dict[str, object]) -> str:
    return str(sample.get("file_name", sample.get("image_id", "?")))


def _stop(reason: str, iteration: int, images: Iterable[str]) -> FloatingPointError:
    return FloatingPointError(f"{reason} at iteration {iteration}, images: {', '.join(images)}")


def _explained(error: Exception) -> Exception:
    """The error of a loader, with what it means if one of its workers has ended."""
    # A connection breaks where a batch was on its way. What a worker has raised has the same type.
    is_lost = isinstance(error, ConnectionError | EOFError) and "Caught" not in str(error)
    if not is_lost and "DataLoader worker (pid" not in str(error):
        return error
    explained = RuntimeError(
        "a worker that loads data has ended, as the system makes it when memory runs out: set "
        f"dataloader.train.num_workers lower ({type(error).__name__}: {error})"
    )
    explained.__cause__ = error
    return explained


def _to_host(losses: list[dict[str, Tensor]], norm: Tensor) -> tuple[list[Losses], float]:
    """The losses of all micro-batches and the gradient's norm, with one wait for the device."""
    flat = [loss.detach().float() for named in losses for loss in named.values()]
    values = iter(torch.stack([*flat, norm.to(flat[0])]).tolist())
    return [dict(zip(named, values, strict=False)) for named in losses], next(values)


def _mean(losses: list[Losses]) -> Losses:
    return {name: sum(named[name] for named in losses) / len(losses) for name in losses[0]}


def _check_finite(reports: list[_Report], iteration: int) -> None:
    losses = [named for report in reports for named in report.losses]
    wrong = {
        name: value for named in losses for name, value in named.items() if not math.isfinite(value)
    }
    if wrong:
        values = ", ".join(f"{name}={value}" for name, value in wrong.items())
        images = [image for report in reports for image in report.suspects]
        raise _stop(f"the loss became infinite or NaN ({values})", iteration, images)


def _waits_behind_proposals(model: nn.Module) -> bool:
    """Whether a forward pass exchanges anything after proposals, which may be found to be NaN."""
    if isinstance(model, FSDPModule):  # weights of later layers
        return True
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    heads = getattr(plain, "roi_heads", None)
    norms = (nn.SyncBatchNorm, NaiveSyncBatchNorm)
    return isinstance(heads, nn.Module) and any(isinstance(m, norms) for m in heads.modules())


class AccumulatingTrainer(SimpleTrainer):
    """Updates the weights once per iteration, by the mean gradient of several micro-batches.

    Everything that counts iterations (hooks, learning rate, checkpoints, logs) counts updates.
    Otherwise it works like Detectron2's trainers, except that infinite or NaN losses and gradients
    stop all processes before the update, with a message that names the images. With float16,
    gradients may overflow. Such updates are skipped, until the scale of the loss has become tiny.

    Args:
        model: the model, on its device and possibly distributed; returns a dict of losses.
        data_loader: yields micro-batches. The state has the place in an `OrderedLoader`.
        optimizer: the optimizer of the model's parameters.
        accumulate_steps: number of micro-batches in an iteration.
        amp_dtype: `torch.float16` or `torch.bfloat16` for mixed precision; None for none.
        init_scale: the factor of the loss that float16 starts with.

    Attributes:
        grad_scaler: scales the loss with float16; otherwise does nothing.
        stop_signals: the signals that stop training.

    Raises:
        ValueError: `accumulate_steps` is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        accumulate_steps: int = 1,
        amp_dtype: torch.dtype | None = None,
        init_scale: float = AmpSettings.init_scale,
    ) -> None:
        check_value("accumulate_steps", PositiveInt, accumulate_steps)
        super().__init__(model, data_loader, optimizer)
        self.accumulate_steps = accumulate_steps
        self.amp_dtype = amp_dtype
        self.stop_signals = StopSignals()
        self._device_type = next(model.parameters()).device.type
        # Processes that need each other's weights stop after the same iteration.
        self._stops_together = isinstance(model, FSDPModule)
        self._waits_behind_proposals = _waits_behind_proposals(model)
        self._images = 0  # of all processes, in the current iteration
        self._ordered = data_loader if isinstance(data_loader, OrderedLoader) else None
        # Of all processes, after the update that was last.
        self._places: Places | None = None
        self._finished = -1  # the last iteration that all hooks have seen
        self.grad_scaler = torch.amp.GradScaler(
            self._device_type, init_scale=init_scale, enabled=amp_dtype is torch.float16
        )

    def train(self, start_iter: int, max_iter: int, unfinished: Sequence[HookBase] = ()) -> None:
        """Trains like Detectron2's trainers; Ctrl-C and SIGTERM stop it between two updates.

        A hook may lower `max_iter` meanwhile: see `finish_early`.

        Args:
            start_iter: the first iteration.
            max_iter: the iteration to stop before.
            unfinished: hooks that act first, if they may not have acted after the iteration before
                `start_iter`: the run may have been stopped between its checkpoint and its end.

        Raises:
            KeyboardInterrupt, SystemExit: a signal, see `StopSignals`.
        """
        detectron2_logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with self.stop_signals.active(), EventStorage(start_iter) as self.storage:
            # Detectron2's keeps a million values of each, which are hundreds of megabytes.
            self.storage._history.default_factory = partial(HistoryBuffer, _HISTORY_LENGTH)
            try:
                with tell_of_failures():
                    self._train(unfinished)
            except (OtherProcessError, LostProcessError) as error:
                detectron2_logger.error("Training stops in iteration %d: %s", self.iter, error)
                raise
            except Exception:
                detectron2_logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()
                # Ends the workers, which otherwise are killed and leave temporary files behind.
                self._data_loader_iter_obj = None

    def _train(self, unfinished: Sequence[HookBase]) -> None:
        self.before_train()
        self._finish_previous(unfinished)
        while self.iter < self.max_iter:
            self.before_step()
            self.run_step()
            self.after_step()
            self._finished = self.iter
            # Afterwards it equals max_iter, by which hooks know that training finished.
            self.iter += 1

    def _finish_previous(self, unfinished: Sequence[HookBase]) -> None:
        if self._finished == self.start_iter - 1:
            return
        self.iter = self.storage.iter = self.start_iter - 1
        for hook in unfinished:
            hook.after_step()
        self.iter = self.storage.iter = self.start_iter

    def check_signals(self) -> None:
        """Stops training between two updates if there was a signal; call it in all processes.

        Raises:
            KeyboardInterrupt, SystemExit: see `StopSignals`.
        """
        if self._stops_together:
            for number in filter(None, comm.all_gather(self.stop_signals.noted)):
                self.stop_signals.note(number)
        self.stop_signals.check()

    def _interruptible(self) -> contextlib.AbstractContextManager[None]:
        if self._stops_together:
            return contextlib.nullcontext()
        return self.stop_signals.at_once()

    def finish_early(self) -> None:
        """Makes the current iteration the last one; for `after_step` of hooks, in all processes."""
        self.max_iter = self.iter + 1

    def run_step(self) -> None:
        """Trains on the next `accumulate_steps` batches of the loader.

        Raises:
            FloatingPointError: a loss or a gradient is infinite or NaN; the weights are unchanged.
        """
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        try:
            places = self._backward()
        except Exception as error:
            # Another process may have been stopped by the signal before this one.
            if not is_failure_of_other(error):
                self.stop_signals.check()
            raise
        self.after_backward()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self._places = places
        if comm.is_main_process():
            speed = self._images / (time.perf_counter() - start)
            get_event_storage().put_scalar("images_per_second", speed)

    def _backward(self) -> Places:
        """Computes the gradient, which is finite or will be skipped by the scaler.

        Returns:
            The places of all processes in the data.
        """
        self.optimizer.zero_grad()
        batches: list[Batch] = []
        losses: list[dict[str, Tensor]] = []
        data_time = 0.0
        for left in reversed(range(self.accumulate_steps)):
            batch, seconds = self._next_batch()
            batches.append(batch)
            data_time += seconds
            # Processes exchange gradients once, in the last micro-batch.
            with self._no_sync() if left else contextlib.nullcontext():
                losses.append(self._forward(batches[-1]))
                total = reduce(add, losses[-1].values()) / self.accumulate_steps
                self.grad_scaler.scale(total).backward()
        return self._report(batches, losses, data_time)

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _next_batch(self) -> tuple[Batch, float]:
        """The next micro-batch, once all processes have theirs, and the seconds that it took."""
        batch: Batch = []
        failure: Exception | None = None
        start = time.perf_counter()
        try:
            with self._interruptible():
                batch = next(self._data_loader_iter)
        except Exception as error:
            failure = _explained(error)
        seconds = time.perf_counter() - start
        # Otherwise, the others would wait in the forward pass for the process that failed.
        share_failure(failure, self.iter)
        return batch, seconds

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a micro-batch."""
        enabled = self.amp_dtype is not None
        losses: dict[str, Tensor] | Tensor = {}
        fault: Exception | None = None
        images: list[str] = []
        try:
            with torch.autocast(self._device_type, dtype=self.amp_dtype, enabled=enabled):
                losses = self.model(batch)
        except FloatingPointError as error:  # Detectron2 has found infinite or NaN proposals
            images = [_image_name(sample) for sample in batch]
            if self._waits_behind_proposals:  # as the others do by now
                raise _stop(str(error), self.iter, images) from error
            fault = error
        # Likewise, in the backward pass. Other faults may have come before an exchange of the
        # forward pass, in which the others wait.
        share_failure(fault, self.iter, images)
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _gradient_norm(self) -> Tensor:
        """The norm of all gradients together; 0 with a scaler, which checks them itself."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        is_scaled = self.grad_scaler.is_enabled()
        return total_norm([p.grad for p in parameters if p.grad is not None and not is_scaled])

    def _check_gradient(self, norm: float, batches: list[Batch]) -> None:
        fault = None
        if self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() < _MIN_SCALE:
            scale = self.grad_scaler.get_scale()
            fault = f"the gradient stays infinite or NaN (float16's loss scale fell to {scale})"
        elif not math.isfinite(norm):
            named = self.model.named_parameters()
            gradients = [(n, local_part(p.grad)) for n, p in named if p.grad is not None]
            found = comm.all_gather([n for n, part in gradients if not part.isfinite().all()])
            wrong = list(dict.fromkeys(itertools.chain(*found)))
            # A norm that overflows is refused, because Adam's squares would overflow too.
            where = f"of {len(wrong)} parameters, such as {wrong[0]}" if wrong else "its norm is"
            fault = f"the gradient became infinite or NaN ({where})"
        if fault is not None:
            images = [_image_name(sample) for batch in batches for sample in batch]
            # The gradient is the same in all processes, so all of them get here.
            raise _stop(fault, self.iter, itertools.chain(*comm.all_gather(images)))

    def _report(
        self, batches: list[Batch], on_device: list[dict[str, Tensor]], data_time: float
    ) -> Places:
        """Checks the losses and the gradient, and logs means over micro-batches and processes."""
        losses, norm = _to_host(on_device, self._gradient_norm())
        suspects = [
            _image_name(sample)
            for batch, named in zip(batches, losses, strict=True)
            if not all(map(math.isfinite, named.values()))
            for sample in batch
        ]
        # Sent to all and not only to the first, so that all stop.
        images = sum(map(len, batches))
        memory = peak_memory_mb(self._device_type)
        place = None if self._ordered is None else self._ordered.place.to_state()
        reports = comm.all_gather(_Report(losses, data_time, images, memory, suspects, place))
        _check_finite(reports, self.iter)
        self._check_gradient(norm, batches)
        places = [report.place for report in reports]
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time)
        if not comm.is_main_process():
            return places
        self._images = sum(report.images for report in reports)
        storage.put_scalar("data_time", max(report.data_time for report in reports))
        used = [report.memory_mb for report in reports if report.memory_mb is not None]
        if used:
            storage.put_scalar("memory_mb", max(used), smoothing_hint=False)
        mean = _mean([named for report in reports for named in report.losses])
        storage.put_scalar("total_loss", sum(mean.values()))
        if len(mean) > 1:
            storage.put_scalars(**mean)
        return places

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as Detectron2's `AMPTrainer` saves it."""
        state = super().state_dict()
        state["is_finished"] = self._finished == self.iter
        if self._ordered is not None:
            state["data"] = self._places
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state; the loss scale starts anew if the checkpoint has none.

        Raises:
            ValueError: the place in the data is none.
        """
        super().load_state_dict(state_dict)
        # Older checkpoints do not say it.
        self._finished = self.iter if state_dict.get("is_finished", True) else -1
        if self._ordered is not None:
            self._places = state_dict.get("data")
            self._ordered.restore(self._places, (self.iter + 1) * self.accumulate_steps)
        if "grad_scaler" in state_dict and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
