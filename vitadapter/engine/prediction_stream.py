"""Images that are read ahead of the model, and joined to batches of images of one size.

However many images there are, only a bounded number of them is held.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np

__all__ = ["read_ahead", "same_size_batches"]

_AHEAD = 2
"""Images that each worker has read or is reading."""

_WAITING = 4
"""Batches whose images wait for others of their size."""

Source = TypeVar("Source")
Value = TypeVar("Value")


def read_ahead(
    sources: Iterable[Source], read: Callable[[Source], Value], workers: int
) -> Iterator[tuple[Source, Value | Exception]]:
    """Reads in threads, which Pillow and OpenCV let run at once, and yields in order.

    Args:
        sources: what is to be read, any number.
        read: reads one of them.
        workers: number of threads; with 0, each is read when it is asked for.

    Yields:
        Each source, and what was read or the error by which that failed.
    """

    def attempt(source: Source) -> Value | Exception:
        try:
            return read(source)
        except Exception as error:  # of this image alone
            return error

    if workers == 0:
        yield from ((source, attempt(source)) for source in sources)
        return
    remaining = iter(sources)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[Source, Future[Value | Exception]]] = deque(
            (source, pool.submit(attempt, source)) for source in islice(remaining, _AHEAD * workers)
        )
        try:
            while waiting:
                source, future = waiting.popleft()
                yield source, future.result()
                for following in islice(remaining, 1):
                    waiting.append((following, pool.submit(attempt, following)))
        finally:
            pool.shutdown(cancel_futures=True)


def same_size_batches(
    images: Iterable[tuple[Source, np.ndarray]], batch_size: int
) -> Iterator[list[tuple[Source, np.ndarray]]]:
    """Joins images of one size, so that no image is padded for another.

    Args:
        images: with what each comes from, (H, W, C).
        batch_size: number of images in a batch. It is smaller at the end, and where too many images
            of other sizes wait.

    Yields:
        Batches. All images are in one; those of a size stay in order.
    """
    waiting: dict[tuple[int, ...], list[tuple[Source, np.ndarray]]] = {}
    for source, image in images:
        batch = waiting.setdefault(image.shape, [])
        batch.append((source, image))
        if len(batch) == batch_size:
            yield waiting.pop(image.shape)
        elif sum(map(len, waiting.values())) >= _WAITING * batch_size:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()
