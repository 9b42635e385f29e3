"""Data order and random numbers that depend on the iteration, not on where a run was stopped.

With `train.seed` a resumed run equals one that was never stopped, bit for bit where the operators
are deterministic, if the data are loaded by the training process itself (`num_workers=0`). With
workers the images come in the same order (nearly so with `aspect_ratio_grouping`, whose groups are
not known while workers fill them), but their augmentations are drawn anew. A change of
`total_batch_size` counts the images seen so far by the new size.
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
    """Seeds Python, NumPy and PyTorch as Detectron2's `default_setup` does.

    Args:
        seed: negative for random numbers that differ from start to start.
    """
    if seed >= 0:
        seed_all_rng(seed + comm.get_rank())


def _seed_of(seed: int, iteration: int) -> int:
    """32 bits that differ between iterations and between processes."""
    return int(np.random.SeedSequence([seed, iteration, comm.get_rank()]).generate_state(1)[0])


class IterationSeed(HookBase):
    """Ties the random numbers of each iteration to its number, in every process."""

    def __init__(self, seed: int) -> None:
        """
        Args:
            seed: not negative.
        """
        self._seed = seed

    def before_step(self) -> None:
        """Seeds Python, NumPy and PyTorch."""
        seed_all_rng(_seed_of(self._seed, self.trainer.iter))


class _Remaining(Sampler[int]):
    """What a sampler gives after its first `consumed` indices, preceded by those set aside."""

    def __init__(self, sampler: Sampler[int], consumed: int, set_aside: Sequence[int]) -> None:
        self._sampler, self._consumed, self._set_aside = sampler, consumed, set_aside

    def __iter__(self) -> Iterator[int]:
        later = itertools.islice(self._sampler, self._consumed, None)
        return itertools.chain(self._set_aside, later)


def _parts(loader: object) -> Iterator[object]:
    """A loader and all that it wraps, from the outside in, as far as the sampler."""
    while loader is not None:
        yield loader
        if isinstance(loader, ToIterableDataset):
            return
        # Detectron2's MapDataset keeps what it wraps to itself.
        loader = getattr(loader, "dataset", getattr(loader, "_dataset", None))


def batch_size_of(loader: object) -> int | None:
    """Number of images in each batch of a loader; None where it does not tell."""
    sizes = (getattr(part, "batch_size", None) for part in _parts(loader))
    return next(filter(None, sizes), None)


def _group(
    indices: Iterable[int], records: Sequence[dict], batch_size: int, batches: int
) -> tuple[int, list[int]]:
    """How many images so many batches of equal orientation take, and those not in one of them."""

    @cache  # unpacking a record again for each pass over the data would take minutes
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
    """Whether the first so many batches could be left out."""
    sampled, batch_size = parts[-1], batch_size_of(parts[0])
    if not isinstance(sampled, ToIterableDataset) or batch_size is None:
        return False
    consumed = batches * batch_size
    set_aside: list[int] = []
    if any(isinstance(part, AspectRatioGroupedDataset) for part in parts):
        mapped = sampled.dataset
        records = mapped._dataset if isinstance(mapped, MapDataset) else mapped
        first = records[0]
        # Else the images would have to be read.
        if isinstance(first, dict) and {"width", "height"} <= first.keys():
            consumed, set_aside = _group(sampled.sampler, records, batch_size, batches)
    sampled.sampler = _Remaining(sampled.sampler, consumed, set_aside)
    return True


def continue_data(loader: Iterable[list[dict]], batches: int, seed: int) -> None:
    """Makes a training loader, not yet iterated over, go on where the run was stopped.

    Args:
        loader: as Detectron2's `build_detection_train_loader` builds it, with any sampler. Any
            other kind starts from its beginning, with a warning.
        batches: number of batches that this process has taken from it so far.
        seed: of the workers' random numbers; negative for others at each start.
    """
    parts = list(_parts(loader))
    for part in parts:
        if seed >= 0 and isinstance(part, DataLoader):
            part.generator = torch.Generator().manual_seed(_seed_of(seed, batches))
    if batches > 0 and not _skip(parts, batches):
        logger.warning(
            "the data start from their beginning: %s is no loader of Detectron2's with a sampler, "
            "whose first %d batches could be left out",
            type(loader).__name__,
            batches,
        )
