"""Keeps the memory that workers free at hand, since they need it again for the next image."""

import ctypes
import os
import sys
from functools import cache

__all__ = ["keep_freed_memory"]

# Numbers of options and the largest size that is not mapped anew each time, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD = 2**25
_KEPT = 2**28
# With these, the user has chosen.
_CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@cache
def keep_freed_memory() -> bool:
    """Lets this process keep up to 256 MiB of freed memory instead of giving them back.

    By default, glibc gives the memory of each decoded and resized image back to the system, which
    clears every page of it again for the next image: a quarter of the time of a worker.

    Returns:
        Whether it does so: it needs glibc, and environment variables that do not choose otherwise.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _CHOICES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(_M_TRIM_THRESHOLD, _KEPT)
    return bool(kept and mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD))
