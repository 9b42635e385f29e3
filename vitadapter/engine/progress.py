"""The line of the log that says how training goes, and the memory that it takes."""

import logging
import sys

import torch
from detectron2.utils.events import CommonMetricPrinter, get_event_storage

if sys.platform == "win32":
    resource = None
else:
    import resource

__all__ = ["ProgressPrinter", "peak_memory_mb"]

logger = logging.getLogger(__name__)

_MB = 2**20
# The system counts in kilobytes, macOS in bytes.
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


def peak_memory_mb(device_type: str) -> float | None:
    """The largest memory so far: of tensors on the GPU, or resident memory of this process.

    Args:
        device_type: "cuda" or "cpu", of the device that trains.

    Returns:
        In MiB; None where the system does not tell.
    """
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated() / _MB
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT / _MB


# Scalars that are printed behind the losses: name in the line, form.
_PRINTED = {
    "lr": ("lr", ".5g"),
    "time": ("time", ".4f"),
    "data_time": ("data_time", ".4f"),
    "images_per_second": ("images/s", ".4g"),
    "memory_mb": ("memory_mb", ".0f"),
}


class ProgressPrinter(CommonMetricPrinter):
    """Detectron2's printer, with images per second and the memory of CPUs too.

    It prints once for an iteration. Times are in seconds per iteration: of everything, and of
    waiting for data.

    Args:
        max_iter: number of iterations, from which the time that is left is estimated.
        window_size: number of iterations over which the values are smoothed.
    """

    def __init__(self, max_iter: int, window_size: int = 20) -> None:
        super().__init__(max_iter, window_size)
        self._printed = -1

    def write(self) -> None:
        """Logs a line, unless there is none for a new iteration."""
        storage = get_event_storage()
        iteration = storage.latest().get("total_loss", (0.0, -1))[1]
        # The evaluation after training is written too, but has no line.
        if iteration <= self._printed or iteration < storage.iter:
            return
        self._printed = iteration
        scalars = {
            name: value
            for name, (value, _) in storage.latest_with_smoothing_hint(self._window_size).items()
        }
        shown = [
            f"{name}: {value:.4g}"
            for name, value in scalars.items()
            if "loss" in name or "[metric]" in name
        ]
        for name, (title, form) in _PRINTED.items():
            if name in scalars:
                shown.append(f"{title}: {scalars[name]:{form}}")
        eta = self._get_eta(storage)
        logger.info("%siter: %d  %s", f"eta: {eta}  " if eta else "", iteration, "  ".join(shown))
