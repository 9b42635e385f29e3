"""Makes the data and the random numbers of training depend on the seed and the iteration alone.

Each image that a run trains on has a position in the endless stream of the sampler. Its
augmentations draw from generators that are seeded by this position, in whichever process they run.
So any number of data loader workers gives the same images, and a run continues from nothing but
the position: the loader is not replayed. A resumed run equals one that was never stopped, bit for
bit if the operators are deterministic and the mapper keeps no random numbers of its own.
"""

import contextlib
import itertools
import logging
import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data.common import AspectRatioGroupedDataset, MapDataset, ToIterableDataset
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = ["IterationSeed", "OrderedLoader", "Place", "batch_size_of", "seed_process"]

logger = logging.getLogger(__name__)

Batch = list[dict[str, object]]


def seed_process(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch like Detectron2's `default_setup`.

    Args:
        seed: not negative; other processes than the first add their rank.
    """
    seed_all_rng(seed + comm.get_rank())


class IterationSeed(HookBase):
    """Seeds each iteration by its number, in every process.

    Args:
        seed: the run's seed, not negative.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        """Seeds Python, NumPy and PyTorch."""
        numbers = np.random.SeedSequence([self._seed, self.trainer.iter, comm.get_rank()])
        seed_all_rng(int(numbers.generate_state(1)[0]))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy and PyTorch; afterwards they go on as if nothing had been drawn."""
    generator = torch.default_generator
    before = random.getstate(), np.random.get_state(), generator.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    # torch.manual_seed would also seed GPUs, which draw nothing here.
    generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        generator.set_state(before[2])


class Place(NamedTuple):
    """How far a process is in its stream of images."""

    taken: int = 0
    """How many images were taken from the stream."""

    waiting: tuple[int, ...] = ()
    """Those of them, by their positions, that wait for others of their orientation."""

    @classmethod
    def from_state(cls, state: object) -> "Place":
        """Reads what a checkpoint has.

        Raises:
            ValueError: it is no place.
        """
        match state:
            case [int(taken), [*waiting]] if taken >= 0:
                known = [p for p in waiting if isinstance(p, int) and 0 <= p < taken]
                if len(known) == len(waiting):
                    return cls(taken, tuple(known))
        raise ValueError(f"a place in the data must be [taken, [positions]], got {state!r:.100}")

    def to_state(self) -> list[object]:
        """Plain lists, which a checkpoint can have."""
        return [self.taken, list(self.waiting)]


class _Positions(Sampler[tuple[int, int]]):
    """The positions and indices of a sampler from a place on, first those that wait."""

    def __init__(self, sampler: Sampler[int], place: Place) -> None:
        self._sampler, self._place = sampler, place

    def __iter__(self) -> Iterator[tuple[int, int]]:
        numbered = enumerate(self._sampler)
        waiting = set(self._place.waiting)
        taken = itertools.islice(numbered, self._place.taken)
        set_aside = [(position, index) for position, index in taken if position in waiting]
        return itertools.chain(set_aside, numbered)


class _SeededImages(Dataset[Any]):
    """The images of a data set, each with the random numbers of its position.

    Detectron2's `MapDataset` draws another image for one that the mapper skips, from a generator
    and from candidates that depend on what else its process has read. Here, the position decides.
    """

    def __init__(self, images: Dataset[Any], seed: int) -> None:
        self._images = images
        self._seed = seed
        self._rank, self._processes = comm.get_rank(), comm.get_world_size()

    def __getitem__(self, place: tuple[int, int]) -> Any:
        position, index = place
        # In the stream of all processes, so that their number does not matter.
        overall = position * self._processes + self._rank
        # The key tells these numbers from those of the iterations.
        numbers = np.random.SeedSequence([self._seed, overall], spawn_key=(1,))
        first, second = map(int, numbers.generate_state(2))
        with _seeded(first):
            if not isinstance(self._images, MapDataset):
                return self._images[index]
            return self._mapped(self._images, index, random.Random(second))

    def _mapped(self, images: MapDataset, index: int, others: random.Random) -> Any:
        """The image, or the first of others that the mapper does not skip."""
        # Detectron2 has no other access.
        records, mapper = images._dataset, images._map_func
        skipped: set[int] = set()
        while (sample := mapper(records[index])) is None:
            skipped.add(index)
            if len(skipped) == len(records):
                raise ValueError(f"the mapper skips all of the {len(records)} images")
            while index in skipped:
                index = others.randrange(len(records))
        return sample


class _Arrivals:
    """The single images of a loader, and which of them wait to be grouped by their orientation.

    `AspectRatioGroupedDataset`, which groups them, does not tell the positions of those that wait.
    """

    def __init__(self, images: Iterable[dict[str, Any]], batch_size: int) -> None:
        self.dataset = images
        self._batch_size = batch_size
        self.place = Place()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        groups: dict[bool, list[int]] = {True: [], False: []}
        start = self.place
        positions = itertools.chain(start.waiting, itertools.count(start.taken))
        # Those that wait arrive again, before all others.
        to_come = set(start.waiting)
        for position, image in zip(positions, self.dataset, strict=False):
            to_come.discard(position)
            group = groups[image["width"] > image["height"]]
            group.append(position)
            if len(group) == self._batch_size:
                group.clear()
            taken = max(start.taken, position + 1)
            self.place = Place(taken, tuple(sorted({*groups[True], *groups[False], *to_come})))
            yield image


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


class OrderedLoader:
    """A training loader whose data depend on the seed and on its place, and on nothing else.

    Neither the number of workers, nor where a run was stopped, nor what the workers have read in
    advance makes a difference. With the same total batch and without `aspect_ratio_grouping`, the
    number of processes makes none either.

    Args:
        loader: a loader as built by Detectron2's `build_detection_train_loader`, with any sampler;
            it is changed. Other loaders are passed through, and cannot continue.
        seed: of the random numbers, not negative.

    Attributes:
        batch_size: as `batch_size_of`.
    """

    def __init__(self, loader: Iterable[Batch], seed: int) -> None:
        self._loader = loader
        self._batches = 0  # that were taken by this object
        self._start = Place()
        self.batch_size = batch_size_of(loader)
        parts = list(_parts(loader))
        sampled = parts[-1]
        self._sampled: ToIterableDataset | None = None
        self._arrivals: _Arrivals | None = None
        for part in parts:
            if isinstance(part, DataLoader):
                # Otherwise, the start of workers would draw from the numbers of an iteration.
                part.generator = torch.Generator().manual_seed(seed)
        # A sampler that is told apart by workers itself has no positions that all of them agree on.
        if not isinstance(sampled, ToIterableDataset) or not sampled.shard_sampler:
            return
        if self.batch_size is None:
            return
        self._sampled, self._sampler = sampled, sampled.sampler
        sampled.dataset = _SeededImages(sampled.dataset, seed)
        for part in parts:
            if isinstance(part, AspectRatioGroupedDataset):
                # One image from each worker in turn, as they arrive, for any number of workers.
                sampled.shard_chunk_size = 1
                part.dataset = self._arrivals = _Arrivals(part.dataset, part.batch_size)

    @property
    def place(self) -> Place:
        """Where this process is, after the batch that it was given last."""
        if self._arrivals is not None:
            return self._arrivals.place
        return Place(self._start.taken + self._batches * (self.batch_size or 0))

    def __iter__(self) -> Iterator[Batch]:
        if self._sampled is not None:
            self._sampled.sampler = _Positions(self._sampler, self._start)
        for batch in self._loader:
            self._batches += 1
            yield batch

    def restore(self, saved: object, batches: int) -> None:
        """Continues where a run was stopped; call it before iterating.

        Args:
            saved: for each process of that run, the state of its `Place`; None if it is unknown,
                as in checkpoints of older versions.
            batches: number of batches that each process has taken.

        Raises:
            ValueError: `saved` has another form.
        """
        if self._sampled is None:
            if batches > 0:
                logger.warning(
                    "the data start from the beginning: %s is not a loader of Detectron2 with a "
                    "sampler, so its first %d batches cannot be skipped",
                    type(self._loader).__name__,
                    batches,
                )
            return
        self._start = self._place_of(saved, batches)
        if self._arrivals is not None:
            self._arrivals.place = self._start

    def _place_of(self, saved: object, batches: int) -> Place:
        assert self.batch_size is not None
        if saved is None:
            logger.warning("the checkpoint does not say which images were seen: they are estimated")
            return Place(batches * self.batch_size)
        if not isinstance(saved, list) or not saved:
            raise ValueError(f"the places in the data must be a list, got {saved!r:.100}")
        places = [Place.from_state(state) for state in saved]
        if len(places) == comm.get_world_size():
            place = places[comm.get_rank()]
            return place if self._arrivals is not None else Place(place.taken)
        logger.warning(
            "the run was trained by %d processes, from here on by %d: the images go on in the same "
            "order, but are divided differently between the processes",
            len(places),
            comm.get_world_size(),
        )
        # The images that wait for their group come again in the next pass over the data.
        return Place(sum(place.taken for place in places) // comm.get_world_size())
