"""What processes say of each other's failures; real ones are in `test_train_loop.py`."""

import signal
from unittest import mock

import pytest
from detectron2.utils import comm
from parallel_runs import small_run
from small_trainer import samples
from torch import distributed

from vitadapter.engine import failures
from vitadapter.engine.failures import (
    LostProcessError,
    OtherProcessError,
    is_failure_of_other,
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


def raise_here(error: BaseException) -> None:
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


@pytest.mark.parametrize(
    ("stop", "name"), [(SystemExit(143), "SIGTERM"), (KeyboardInterrupt(), "SIGINT")]
)
def test_a_process_that_is_stopped_says_so(
    store: distributed.Store, stop: BaseException, name: str
) -> None:
    with mock.patch.object(comm, "get_rank", return_value=1), pytest.raises(type(stop)):
        raise_here(stop)
    with pytest.raises(OtherProcessError, match=rf"^process 1 on \S+ was stopped by {name}$"):
        raise_here(RuntimeError(GLOO))


def test_other_ways_to_exit_are_no_signals(store: distributed.Store) -> None:
    with mock.patch.object(comm, "get_rank", return_value=1), pytest.raises(SystemExit):
        raise_here(SystemExit("a user's hook has seen enough"))
    with pytest.raises(LostProcessError):
        raise_here(RuntimeError(GLOO))


@pytest.mark.parametrize(
    ("met", "said", "is_failure"),
    [
        (RuntimeError(GLOO), None, True),  # killed
        (RuntimeError(GLOO), KeyError("data"), True),
        (RuntimeError(GLOO), SystemExit(143), False),
        (OtherProcessError("process 1 on a failed"), KeyError("data"), True),
        (OtherProcessError("process 1 on a failed"), None, False),  # and has not ended yet
        (RuntimeError("DataLoader worker is killed by signal: Terminated"), None, False),
    ],
)
def test_whether_a_signal_is_the_reason_to_end(
    store: distributed.Store, met: Exception, said: BaseException | None, is_failure: bool
) -> None:
    """If another process has failed or was killed, the signal is its launcher's."""
    if said is not None:
        with mock.patch.object(comm, "get_rank", return_value=1), pytest.raises(type(said)):
            raise_here(said)
    assert is_failure_of_other(met) is is_failure
    trainer, _ = small_run(samples(2), 2, is_sharded=False)
    trainer.stop_signals.note(signal.SIGTERM)
    with (
        mock.patch.object(trainer, "_backward", side_effect=met),
        pytest.raises(type(met) if is_failure else SystemExit),
    ):
        trainer.run_step()


def test_the_store_may_have_ended(monkeypatch) -> None:
    def end() -> None:
        raise distributed.DistNetworkError("Broken pipe")

    monkeypatch.setattr(failures, "_get_default_store", end)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(KeyError):
        raise_here(KeyError("own"))
    with pytest.raises(LostProcessError, match=r"\(tcp/pair\.cc:545\] Read error: [^.]* peer\)$"):
        raise_here(RuntimeError(GLOO))
    # Nobody can be asked whether the other process was stopped, too.
    assert not is_failure_of_other(RuntimeError(GLOO))


def test_a_single_process_keeps_its_errors() -> None:
    share_failure(None, 3)
    with pytest.raises(RuntimeError, match=r"/third_party/gloo"):
        raise_here(RuntimeError(GLOO))
    with pytest.raises(KeyError):
        share_failure(KeyError("a"), 3)
    with pytest.raises(FloatingPointError, match=r"^NaN at iteration 3, images: a\.png, b\.png$"):
        share_failure(FloatingPointError("NaN"), 3, ["a.png", "b.png"])
