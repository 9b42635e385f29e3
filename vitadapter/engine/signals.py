"""SIGINT (Ctrl-C) and SIGTERM stop a run cleanly, with the exit status that shells expect.

This module imports nothing heavy, so that it can be imported before everything else. Signals that
were ignored when the process started, such as SIGINT under `nohup ... &`, stay ignored.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = [
    "Handler",
    "StopSignals",
    "end_by_signals",
    "exit_on_signals",
    "forward_signals",
    "set_handlers",
]

Handler = Callable[[int, FrameType | None], object] | int | None

_STOPPING = (signal.SIGINT, signal.SIGTERM)


def set_handlers(handler: Handler) -> dict[int, Handler]:
    """Sets the handler of SIGINT and SIGTERM, unless they are ignored.

    Returns:
        The handlers from before, by signal; empty in a thread that may not set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) or signal.SIG_DFL for number in heard}


def _exit(number: int) -> None:
    """Ends the process without an exception, which could be swallowed on its way."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(128 + number)


def exit_on_signals() -> None:
    """Makes a signal end the process at once, for as long as there is nothing to save."""
    set_handlers(lambda number, frame: _exit(number))
    # While Python shuts down, it runs no handlers, and the exit status is already set.
    atexit.register(set_handlers, signal.SIG_IGN)


@contextlib.contextmanager
def end_by_signals() -> Iterator[None]:
    """Lets the system end the process at a signal, for as long as there is nothing to clean up.

    Python runs its own handlers only between two of its instructions, so not while a library waits
    for other processes.
    """
    before = set_handlers(signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def forward_signals() -> Iterator[None]:
    """Passes signals on to the child processes and waits for them to end.

    Raises:
        SystemExit: on leaving, if there was a signal; with the exit status that stands for it.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        children = multiprocessing.active_children()
        if not children:
            _exit(number)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                assert child.pid is not None  # it has been started
                os.kill(child.pid, number)
        for child in children:
            # torch.multiprocessing would kill the others 30 s after the first has ended.
            child.join()

    before = set_handlers(forward)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            raise SystemExit(128 + received[0])


class StopSignals:
    """Remembers a signal that is to stop training, and raises an exception when that is harmless.

    Python may run a handler between any two instructions, even in the middle of an update of the
    weights or while a checkpoint is written. The exception is therefore raised by `check`, or
    inside of `at_once`. Python loses the exception of a handler that interrupts a destructor
    or a callback of the garbage collector, so call `check` often inside of `at_once`,
    too. Further signals change nothing, since a scheduler, a launcher and a terminal may each send
    one. PyTorch also raises from a handler when a worker of a data loader dies. Here, this is found
    when its next batch is needed.
    """

    def __init__(self) -> None:
        self._noted: int | None = None
        self._at_once = False
        self._is_active = False
        self._process = os.getpid()
        self._on_child: Handler = signal.SIG_DFL

    @property
    def noted(self) -> int | None:
        """The number of the signal, if there was one."""
        return self._noted

    def note(self, number: int) -> None:
        """Takes over a signal that another process has received.

        Args:
            number: of the signal.
        """
        self._noted = self._noted or number

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Handles the signals, if Python allows it; raises on leaving, like `check`."""
        self._process = os.getpid()
        before = set_handlers(self._note)
        self._is_active = bool(before) and hasattr(signal, "SIGCHLD")  # not on Windows
        self._silence_workers()
        try:
            yield
            self.check()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            # If all processes received the signal, workers may still die of it.
            if self._is_active and self._noted is None:
                signal.signal(signal.SIGCHLD, self._on_child)
            self._is_active, self._noted = False, None

    def check(self) -> None:
        """Stops training if there was a signal.

        Raises:
            KeyboardInterrupt: it was SIGINT.
            SystemExit: it was SIGTERM; with the exit status that stands for it.
        """
        if self._noted == signal.SIGINT:
            raise KeyboardInterrupt
        if self._noted is not None:
            raise SystemExit(128 + self._noted)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a signal raise at once inside of what takes long and changes no state of training.

        Raises:
            KeyboardInterrupt, SystemExit: like `check`, also instead of an error that
                followed the signal, such as that of a worker that received it, too.
        """
        try:
            self._at_once = True
            self.check()
            yield
        except Exception:
            self.check()
            raise
        finally:
            self._at_once = False
            self._silence_workers()
        self.check()

    def _silence_workers(self) -> None:
        """Removes the handler that PyTorch sets with the first data loader that has workers."""
        if self._is_active:
            handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if callable(handler):
                self._on_child = handler

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker, which its parent ends by SIGTERM
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self._noted is None:
            self._noted = number
            # Logging may be what was interrupted.
            with contextlib.suppress(OSError):
                os.write(2, b"%s: stopping soon\n" % signal.Signals(number).name.encode())
        if self._at_once:
            self._at_once = False
            self.check()
