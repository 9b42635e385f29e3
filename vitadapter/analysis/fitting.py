"""What fits a GPU: the largest batch, and the settings that save memory."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from vitadapter.analysis.memory import GIB, estimate_memory
from vitadapter.analysis.steps import Workload
from vitadapter.analysis.synthetic_images import MOST_PIXELS
from vitadapter.engine.overrides import apply_overrides

__all__ = ["Saving", "largest_batch", "most_images", "savings"]

logger = logging.getLogger(__name__)

# The CUDA context and the libraries' workspaces take some of a GPU, and the allocator's gaps.
USABLE = 0.9
_LARGEST = 1024  # images
_LARGEST_STEP = 8  # times as many images


@dataclass(frozen=True)
class Saving:
    """A change that saves memory.

    Attributes:
        change: what to type.
        peak: the peak of training with it, in bytes.
    """

    change: str
    peak: int


def most_images(workload: Workload) -> int:
    """The largest batch of a workload's images that `largest_batch` tries."""
    height, width = workload.size
    return min(_LARGEST, MOST_PIXELS // (height * width))


def largest_batch(
    cfg: DictConfig, workload: Workload, gpu_memory: float, *, ranks: int = 1, parallel: str = "ddp"
) -> int:
    """The largest batch that can be trained on a GPU, of at most `most_images`.

    Args:
        cfg, workload, ranks, parallel: as for `estimate_memory`; the workload's batch is not used.
        gpu_memory: of the GPU in GiB; 90 % of it are counted, since the rest is taken by the CUDA
            context, workspaces of libraries and gaps between tensors.

    Raises:
        ValueError: the memory is not positive, or not even one image fits; says what it needs.
    """
    if not 0 < gpu_memory < float("inf"):
        raise ValueError(f"the memory of a GPU must be positive (in GiB), got {gpu_memory}")
    limit = gpu_memory * GIB * USABLE
    known: dict[int, int] = {}

    def peak(batch: int) -> int:
        if batch not in known:
            images = replace(workload, batch=batch)
            estimate = estimate_memory(cfg, images, ranks=ranks, parallel=parallel)
            known[batch] = estimate.training.total()
            logger.info("a batch of %d needs %.2f GiB", batch, known[batch] / GIB)
        return known[batch]

    try:
        peak(1)
        fits = 1
    except ValueError:  # batch norms may need two images; any other fault comes again
        peak(2)
        fits = 2
    if peak(fits) > limit:
        height, width = workload.size
        raise ValueError(
            f"no batch fits a GPU of {gpu_memory:g} GiB: the smallest, {fits} x {height} x {width} "
            f"pixels, needs {peak(fits) / GIB:.2f} GiB, so a GPU of "
            f"{peak(fits) / GIB / USABLE:.1f} GiB"
        )
    too_large = most_images(workload) + 1
    guess = fits + 1
    while too_large - fits > 1:
        start = fits
        if peak(guess) <= limit:
            fits = guess
        else:
            too_large = guess
        # The peak is almost linear in the batch, except that the optimizer may need more than the
        # first images: hence the steps are limited.
        slope = max((peak(guess) - peak(start)) // (guess - start), 1)
        more = int((limit - peak(fits)) // slope)
        if more == 0 and guess == fits and start > 2:
            break  # Large batches take long to try, and the slope is that of many images.
        guess = min(fits + max(more, 1), _LARGEST_STEP * fits, too_large - 1)
    return fits


def _takes(part: DictConfig, name: str) -> bool:
    target = part.get("_target_")
    return callable(target) and name in inspect.signature(target).parameters


def _backbone_parts(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The backbone and the parts that it wraps, with their keys."""
    key, part = "model.backbone", cfg.model.get("backbone")
    while isinstance(part, DictConfig):
        yield key, part
        inner = next((name for name in ("bottom_up", "net", "vit") if name in part), None)
        if inner is None:
            return
        key, part = f"{key}.{inner}", part[inner]


def _switched_off(cfg: DictConfig, name: str) -> list[str]:
    """Overrides that switch on `name` wherever the backbone has it and it is not wholly on."""
    return [
        f"{key}.{name}=True"
        for key, part in _backbone_parts(cfg)
        if _takes(part, name) and part.get(name, False) is not True
    ]


def _changes(cfg: DictConfig) -> list[list[str]]:
    """The overrides of each saving that is not made already."""
    checkpointing = _switched_off(cfg, "use_act_checkpoint")
    offloading = _switched_off(cfg, "offload_to_cpu")
    changes = [checkpointing]
    if not cfg.train.amp.enabled:
        changes.append(["train.amp.enabled=True", "train.amp.dtype=bfloat16"])
    if offloading:  # it needs the former
        changes.append([*checkpointing, *offloading])
    changes.append(_switched_off(cfg, "freeze_net"))
    return [change for change in changes if change]


def savings(
    cfg: DictConfig, workload: Workload, *, ranks: int = 1, parallel: str = "ddp"
) -> list[Saving]:
    """What can be changed to save memory, each change alone, and how much is needed then.

    Args:
        cfg, workload, ranks, parallel: as for `estimate_memory`.
    """

    def peak(overrides: list[str], images: Workload = workload, parallel: str = parallel) -> int:
        changed = deepcopy(cfg)
        apply_overrides(changed, overrides)
        estimate = estimate_memory(changed, images, ranks=ranks, parallel=parallel)
        return estimate.training.total()

    found = [Saving(" ".join(change), peak(change)) for change in _changes(cfg)]
    if workload.batch > 1:
        change = f"train.accumulate_steps={2 * cfg.train.accumulate_steps}"
        half = replace(workload, batch=-(-workload.batch // 2))
        with suppress(ValueError):  # batch norms may need two images
            found.append(Saving(f"{change} (micro-batches of {half.batch})", peak([change], half)))
    if ranks > 1 and parallel != "fsdp2":
        found.append(Saving("--parallel fsdp2", peak([], parallel="fsdp2")))
    return found
