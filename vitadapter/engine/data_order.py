"""Makes data order and random numbers depend on the iteration, not on where a run was stopped.

With `train.seed`, a resumed run equals one that was never stopped (bit for bit if the operators are
deterministic), provided that the training process loads the data itself (`num_workers=0`). With
workers, the images come in the same order (nearly so with `aspect_ratio_grouping`, whose groups are
unknown while workers fill them), but their augmentations differ. After a change of
`total_batch_size`, the images seen so far are counted as if the new size had been used throughout.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
from detectron2.data.common import AspectRatioGroupedDataset, MapDataset, ToIterableDataset
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils.data import DataLoader, Sampler

__all__ = ["IterationSeed", "batch_size_of", "continue_data", "seed_process"]

logger = logging.getLogger(__name__)


def seed_process(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch like Detectron2's `default_setup`.

    Args:
        seed: if it is negative, nothing is seeded, and each start has other random numbers.
    """
    if seed >= 0:
        seed_all_rng(seed + comm.get_rank())


def _seed_of(seed: int, iteration: int) -> int:
    """A seed of 32 bits that differs between iterations and between processes."""
    return int(np.random.SeedSequence([seed, iteration, comm.get_rank()]).generate_state(1)[0])


class IterationSeed(HookBase):
    """Seeds each iteration by its number, in every process.

    Args:
        seed: the run's seed, not negative.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        """Seeds Python, NumPy and PyTorch."""
        seed_all_rng(_seed_of(self._seed, self.trainer.iter))


class _Remaining(Sampler[int]):
    """The indices that were set aside, then those of a sampler after its first `consumed` ones."""

    def __init__(self, sampler: Sampler[int], consumed: int, set_aside: Sequence[int]) -> None:
        self._sampler, self._consumed, self._set_aside = sampler, consumed, set_aside

    def __iter__(self) -> Iterator[int]:
        later = itertools.islice(self._sampler, self._consumed, None)
        return itertools.chain(self._set_aside, later)


def _parts(loader: object) -> Iterator[object]:
    """A loader and everything it wraps, from the outside in, down to what has the sampler."""
    while loader is not None:
        yield loader
        if isinstance(loader, ToIterableDataset):
            return
        # Detectron2's MapDataset keeps what it wraps to itself.
        loader = getattr(loader, "dataset", getattr(loader, "_dataset", None))


def batch_size_of(loader: object) -> int | None:
    """Number of images in each batch of a loader; None if the loader does not say."""
    sizes = (getattr(part, "batch_size", None) for part in _parts(loader))
    return next(filter(None, sizes), None)


def _group(
    indices: Iterable[int], records: Sequence[dict], batch_size: int, batches: int
) -> tuple[int, list[int]]:
    """How many images fill `batches` batches of equal orientation, and which are then left over."""

    @cache  # unpacking each record again in each pass over the data would take minutes
    def is_wide(index: int) -> bool:
        return records[index]["width"] > records[index]["height"]

    groups: dict[bool, list[int]] = {True: [], False: []}
    consumed = 0
    for index in indices:
        consumed += 1
        group = groups[is_wide(index)]
        group.append(index)
        if len(group) == batch_size:
            group.clear()
            batches -= 1
            if batches == 0:
                break
    return consumed, groups[True] + groups[False]


def _skip(parts: Sequence[object], batches: int) -> bool:
    """Skips the first `batches` batches; False if the loader does not allow it."""
    sampled, batch_size = parts[-1], batch_size_of(parts[0])
    if not isinstance(sampled, ToIterableDataset) or batch_size is None:
        return False
    consumed = batches * batch_size
    set_aside: list[int] = []
    if any(isinstance(part, AspectRatioGroupedDataset) for part in parts):
        mapped = sampled.dataset
        records = mapped._dataset if isinstance(mapped, MapDataset) else mapped
        first = records[0]
        # Without the sizes, the images would have to be read.
        if isinstance(first, dict) and {"width", "height"} <= first.keys():
            consumed, set_aside = _group(sampled.sampler, records, batch_size, batches)
    sampled.sampler = _Remaining(sampled.sampler, consumed, set_aside)
    return True


def continue_data(loader: Iterable[list[dict]], batches: int, seed: int) -> None:
    """Makes a training loader continue where the run was stopped; call it before iterating.

    Args:
        loader: a loader as built by Detectron2's `build_detection_train_loader`, with any sampler.
            Other loaders start from the beginning, with a warning.
        batches: number of batches that this process has taken from it so far.
        seed: for the random numbers of the workers; negative for other numbers at each start.
    """
    parts = list(_parts(loader))
    for part in parts:
        if seed >= 0 and isinstance(part, DataLoader):
            part.generator = torch.Generator().manual_seed(_seed_of(seed, batches))
    if batches > 0 and not _skip(parts, batches):
        logger.warning(
            "the data start from the beginning: %s is not a loader of Detectron2 with a sampler, "
            "so its first %d batches cannot be skipped",
            type(loader).__name__,
            batches,
        )
