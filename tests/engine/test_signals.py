import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vitadapter.engine.signals import StopSignals, end_by_signals

STOPS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def stop() -> Iterator[StopSignals]:
    """Whatever happens, the handlers from before are back at the end."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield StopSignals()
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(("number", "error"), STOPS)
def test_a_signal_is_noted_until_it_is_asked_for(
    stop: StopSignals, number: int, error: type
) -> None:
    passed = []

    def train() -> None:
        send(number)
        send(signal.SIGTERM)  # the first one counts
        passed.append(1)
        stop.check()
        passed.append(2)

    with pytest.raises(error) as stopped, stop.active():
        train()
    assert passed == [1]
    assert number != signal.SIGTERM or stopped.value.code == 143
    stop.check()  # over


@pytest.mark.parametrize(("number", "error"), STOPS)
def test_a_signal_in_the_last_moment_counts(stop: StopSignals, number: int, error: type) -> None:
    with pytest.raises(error), stop.active():
        send(number)


@pytest.mark.parametrize(("number", "error"), STOPS)
def test_at_once(stop: StopSignals, number: int, error: type) -> None:
    passed = []

    def evaluate() -> None:
        try:
            with stop.at_once():
                send(number)
                passed.append(1)
        finally:
            send(number)  # while the state is saved, say
            passed.append(2)

    with pytest.raises(error), stop.active():
        evaluate()
    assert passed == [2]


def test_swallowed_at_once_it_is_raised_again(stop: StopSignals) -> None:
    passed = []

    def evaluate() -> None:
        with stop.at_once():
            with contextlib.suppress(SystemExit):  # as destructors do
                send(signal.SIGTERM)
            passed.append(1)
        passed.append(2)

    with pytest.raises(SystemExit), stop.active():
        evaluate()
    assert passed == [1]


def test_errors_before_and_after_a_signal(stop: StopSignals) -> None:
    def be_a_worker() -> None:
        with contextlib.suppress(SystemExit):
            send(signal.SIGTERM)
        raise RuntimeError("a worker received it too")

    def run_out() -> None:
        try:
            raise RuntimeError("out of memory")
        finally:
            send(signal.SIGTERM)

    with pytest.raises(SystemExit), stop.active(), stop.at_once():
        be_a_worker()
    with pytest.raises(RuntimeError, match="out of memory"), stop.active():
        run_out()


def test_ignored_signals_stay_ignored(stop: StopSignals) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup's, put back by a fixture
    try:
        with stop.active():
            send(signal.SIGINT)
            stop.check()
        with pytest.raises(SystemExit), stop.active():
            send(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_may_not_set_handlers(stop: StopSignals) -> None:
    errors = []

    def use() -> None:
        try:
            with stop.active(), stop.at_once():
                stop.check()
        except ValueError as error:  # what signal.signal raises outside the main thread
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert errors == []


WAITING = """
import hashlib
from vitadapter.engine.signals import end_by_signals, exit_on_signals

exit_on_signals()
with end_by_signals():
    print("waiting", flush=True)
    hashlib.pbkdf2_hmac("sha1", b"", b"", 10**9)  # Python runs no handlers meanwhile
"""


def test_a_signal_ends_a_process_that_waits_for_others() -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"waiting\n"
    time.sleep(0.2)
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
    process.stdout.close()


def test_handlers_are_back_after_waiting(stop: StopSignals) -> None:
    with end_by_signals():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class OneWorkerDies(IterableDataset):
    """Each worker says its process id; the second one does not give more than that."""

    def __iter__(self) -> Iterator[int]:
        yield os.getpid()
        if get_worker_info().id == 1:
            time.sleep(60)
        yield os.getpid()


def test_a_dying_worker_is_noticed_where_data_is_waited_for(stop: StopSignals, monkeypatch) -> None:
    loaders = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    monkeypatch.setattr(loaders._try_get_data, "__defaults__", (0.1,))  # how often PyTorch looks

    def train() -> None:
        with stop.at_once():
            batches = iter(DataLoader(OneWorkerDies(), batch_size=None, num_workers=2))
            workers = [int(next(batches)) for _ in range(2)]
        os.kill(workers[1], signal.SIGKILL)
        time.sleep(0.2)  # the weights are updated
        updated.append(True)
        with stop.at_once():
            list(batches)

    updated = []
    with pytest.raises(RuntimeError, match="DataLoader worker"), stop.active():
        train()
    assert updated


def test_workers_leave_stopping_to_their_parent(stop: StopSignals) -> None:
    with stop.active():
        child = os.fork()
        if child == 0:
            send(signal.SIGINT)
            send(signal.SIGTERM)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def has_handlers(process: subprocess.Popen[bytes]) -> bool:
    """Python itself handles SIGINT only."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    ("sent", "ignored", "code"),
    [
        ([signal.SIGTERM], [], 143),
        ([signal.SIGINT], [], 130),
        ([signal.SIGINT, signal.SIGTERM], [signal.SIGINT], 143),
    ],
)
def test_the_script_can_be_stopped_while_it_starts(
    repository: Path, tiny_config: Path, sent: list[int], ignored: list[int], code: int
) -> None:
    def ignore() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    script = repository / "scripts" / "lazyconfig_train_net.py"
    process = subprocess.Popen(
        [sys.executable, str(script), "--config-file", str(tiny_config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=ignore,
    )
    wait_for(lambda: has_handlers(process))
    for number in sent:
        process.send_signal(number)
    output, _ = process.communicate(timeout=600)
    assert (process.returncode, output) == (code, b"")


# The first child ends at once, the second one saves for a while; both say what they received.
LAUNCHER = """
import multiprocessing, os, signal, sys, time
from vitadapter.engine.signals import exit_on_signals, forward_signals

def work(seconds):
    def save(number, frame):
        time.sleep(seconds)
        print(number, flush=True)
        os._exit(128 + number)
    signal.signal(signal.SIGTERM, save)
    signal.signal(signal.SIGINT, save)
    started.release()
    time.sleep(60)

exit_on_signals()
started = multiprocessing.Semaphore(0)
with forward_signals():
    children = [multiprocessing.Process(target=work, args=(s,)) for s in (0, 0.3)]
    for child in children:
        child.start()
    for child in children:
        started.acquire()
    print("ready", flush=True)
    children[0].join()
    children[1].kill()  # as torch.multiprocessing does, 30 s later
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_launcher_waits_for_its_children(number: int, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=600)
    assert output.split() == [str(int(number))] * 2
    assert (process.returncode, errors) == (code, "")
