"""In fresh processes, since the memory that this one has freed is anywhere."""

import os
import platform
import resource
import subprocess
import sys

import pytest

from vitadapter.data import freed_memory

# Says whether memory is kept, and how many pages the third use of 36 MiB takes.
PROGRAM = """
import resource, runpy, sys
keep = runpy.run_path(sys.argv[1])["keep_freed_memory"]
kept = keep() if sys.argv[2] == "keep" else False
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    used = [bytearray(b"1") * (12 * 2**20) for _ in range(3)]
    del used
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
PAGES = 36 * 2**20 // resource.getpagesize()
IS_GLIBC = platform.libc_ver()[0] == "glibc"


def use_memory(wish: str, **choices: str) -> tuple[bool, int]:
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(freed_memory.__file__), wish],
        env={**environment, **choices},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, pages = done.stdout.split()
    return kept == "True", int(pages)


def test_freed_memory_is_used_again() -> None:
    kept, pages = use_memory("keep")
    assert kept == IS_GLIBC
    assert pages < PAGES / 10 or not kept
    assert use_memory("give back")[1] > PAGES / 2 or not kept


@pytest.mark.parametrize("name", CHOICES)
def test_what_the_user_chooses_holds(name: str) -> None:
    value = "glibc.malloc.check=0" if name == "GLIBC_TUNABLES" else "1000000"
    assert use_memory("keep", **{name: value})[0] is False
