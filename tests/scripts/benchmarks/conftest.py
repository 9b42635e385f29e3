"""A fixture of the benchmarks' tests."""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def _few_objects_to_collect() -> None:
    """Each turn of a contender begins with a garbage collection.

    Earlier tests of this process have imported much that stays, which would take most of the time.
    """
    gc.collect()
    gc.freeze()
