"""Predicting in several processes that torchrun has started, each with its part of the inputs."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.distributed_c10d import _get_default_store
from tqdm import tqdm

from vitadapter.engine.launch import Place, check_alone

__all__ = ["Progress", "Ranks"]

Value = TypeVar("Value")
# The processes end at different times: one may have a video of hours.
_PATIENCE = timedelta(days=100)
_DONE = "vitadapter/predicted"  # key of the number of images that all processes have done


class Progress:
    """A bar of the images that all processes together are done with.

    Args:
        total: number of images of all processes; of a single one, no bar is shown.
        is_shown: whether this process shows bars.
        store: in which the processes count; None if this is the only one.
    """

    def __init__(self, total: int, is_shown: bool, store: distributed.Store | None = None) -> None:
        self.is_shown = is_shown
        self._store = store
        is_hidden = not is_shown or total < 2
        self._bar = tqdm(total=total, desc="images", unit="image", disable=is_hidden)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, done: int = 0) -> None:
        """Adds images that this process has done, and shows what the others have done since."""
        if self._store is not None:
            done = self._store.add(_DONE, done) - self._bar.n
        self._bar.update(done)


@dataclass(frozen=True)
class Ranks:
    """This process among those that predict together.

    Args:
        place: of this process.
        group: of all processes; None if this is the only one.
    """

    place: Place
    group: Any = None

    @classmethod
    def join(cls) -> "Ranks":
        """Meets the other processes if torchrun has started several, each with a GPU if it can.

        Raises:
            ValueError: processes were started that cannot know of each other.
        """
        if not os.environ.get("LOCAL_RANK"):
            check_alone()
            return cls(Place())
        place = Place.from_torchrun(os.environ)
        if torch.cuda.is_available():
            torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        if place.world_size == 1:
            return cls(place)
        place.join("cpu")
        return cls(place, distributed.new_group(backend="gloo", timeout=_PATIENCE))

    @property
    def is_first(self) -> bool:
        """Whether this process does what is to be done once."""
        return self.place.rank == 0

    def part(self, items: Sequence[Value]) -> list[Value]:
        """The part of this process: every so many-th, so that folders are shared evenly."""
        return list(items[self.place.rank :: self.place.world_size])

    def decided(self, decide: Callable[[], Value]) -> Value:
        """What the first process decides.

        Args:
            decide: called by the first process alone. If it fails, all processes do.

        Raises:
            ValueError, OSError: by `decide`.
        """
        if self.group is None:
            return decide()
        answer: list[Any] = [None, None]
        if self.is_first:
            try:
                answer[0] = decide()
            except (ValueError, OSError) as error:
                answer[1] = error
        distributed.broadcast_object_list(answer, src=0, group=self.group)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def total(self, count: int) -> int:
        """The sum of a number over all processes, for which each waits."""
        if self.group is None:
            return count
        counts = torch.tensor([count])
        distributed.all_reduce(counts, group=self.group)
        return int(counts)

    def progress(self, total: int) -> Progress:
        """What the processes do together, shown by the first one.

        Args:
            total: number of images of all processes.
        """
        store = None if self.group is None else _get_default_store()
        return Progress(total, self.is_first, store)

    def leave(self) -> None:
        """Ends the connection."""
        if self.group is not None:
            distributed.destroy_process_group()
