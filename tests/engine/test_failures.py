"""What processes say of each other's failures; real ones are in `test_train_loop.py`."""

from unittest import mock

import pytest
from detectron2.utils import comm
from torch import distributed

from vitadapter.engine import failures
from vitadapter.engine.failures import (
    LostProcessError,
    OtherProcessError,
    share_failure,
    tell_of_failures,
)

GLOO = "[a/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer. A"


@pytest.fixture
def store(monkeypatch) -> distributed.Store:
    """That of two processes, of which this is the first."""
    store = distributed.HashStore()
    monkeypatch.setattr(failures, "_get_default_store", lambda: store)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    return store


def raise_here(error: Exception) -> None:
    with tell_of_failures():
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError(GLOO), distributed.DistBackendError("NCCL error: remote process exited")]
)
def test_a_lost_process_says_why_if_it_could(store: distributed.Store, error: Exception) -> None:
    with pytest.raises(LostProcessError, match=r"process 0 on .* has lost another process"):
        raise_here(error)
    with mock.patch.object(comm, "get_rank", return_value=1), pytest.raises(MemoryError):
        raise_here(MemoryError("no memory for masks"))
    with pytest.raises(OtherProcessError, match=r"^process 1 on .*: MemoryError: no memory for"):
        raise_here(error)
    with mock.patch.object(comm, "get_rank", return_value=1), pytest.raises(LostProcessError):
        raise_here(error)  # not of itself


def test_the_first_failure_counts(store: distributed.Store) -> None:
    for rank, reason in ((1, "first"), (0, "second")):
        with mock.patch.object(comm, "get_rank", return_value=rank), pytest.raises(KeyError):
            raise_here(KeyError(reason))
    with pytest.raises(OtherProcessError, match="KeyError: 'first'"):
        raise_here(RuntimeError(GLOO))


def test_the_store_may_have_ended(monkeypatch) -> None:
    def end() -> None:
        raise distributed.DistNetworkError("Broken pipe")

    monkeypatch.setattr(failures, "_get_default_store", end)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(KeyError):
        raise_here(KeyError("own"))
    with pytest.raises(LostProcessError, match=r"\(tcp/pair\.cc:545\] Read error: [^.]* peer\)$"):
        raise_here(RuntimeError(GLOO))


def test_a_single_process_keeps_its_errors() -> None:
    share_failure(None, 3)
    with pytest.raises(RuntimeError, match=r"/third_party/gloo"):
        raise_here(RuntimeError(GLOO))
    with pytest.raises(KeyError):
        share_failure(KeyError("a"), 3)
    with pytest.raises(FloatingPointError, match=r"^NaN at iteration 3, images: a\.png, b\.png$"):
        share_failure(FloatingPointError("NaN"), 3, ["a.png", "b.png"])
