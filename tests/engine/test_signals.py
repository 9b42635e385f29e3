import os
import signal
import threading

import pytest

from vitadapter.engine.signals import SignalGate


@pytest.fixture
def gate() -> SignalGate:
    """An installed gate; the handlers from before are checked to be back at the end."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    gate = SignalGate()
    gate.install()
    yield gate
    gate.uninstall()
    assert [signal.getsignal(number) for number in numbers] == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_open_gate_stops_at_once(gate: SignalGate) -> None:
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        send(signal.SIGTERM)
    assert stopped.value.code == 143


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_closed_gate_stops_on_opening(gate: SignalGate, number: int, error: type) -> None:
    gate.close()
    send(number)
    send(number)
    with pytest.raises(error):
        gate.open()
    gate.close()
    gate.open()  # delivered once


def test_a_dying_worker_is_held_back_too(gate: SignalGate) -> None:
    def fail(number: int, frame: object) -> None:
        raise RuntimeError("worker died")

    original = signal.signal(signal.SIGCHLD, fail)
    try:
        gate.close()
        send(signal.SIGCHLD)
        with pytest.raises(RuntimeError, match="worker died"):
            gate.open()
        with pytest.raises(RuntimeError, match="worker died"):
            send(signal.SIGCHLD)
        gate.close()
        send(signal.SIGCHLD)
        gate.uninstall()  # dropped
        assert signal.getsignal(signal.SIGCHLD) is fail
    finally:
        signal.signal(signal.SIGCHLD, original)


def test_ignored_signals_stay_ignored() -> None:
    original = signal.signal(signal.SIGINT, signal.SIG_IGN)
    gate = SignalGate()
    try:
        gate.install()
        send(signal.SIGINT)
        gate.uninstall()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, original)


def test_another_thread_may_not_set_handlers() -> None:
    errors = []

    def use() -> None:
        gate = SignalGate()
        try:
            gate.install()
            gate.close()
            gate.open()
            gate.uninstall()
        except ValueError as error:  # what signal.signal raises outside the main thread
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert errors == []
