"""Signals that stop training, kept away from the moments in which they would do harm."""

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["SignalGate"]

logger = logging.getLogger(__name__)

Handler = Callable[[int, FrameType | None], None]


class SignalGate:
    """Turns Ctrl-C and SIGTERM into exceptions, at once while open, on opening while closed.

    PyTorch's data loader raises from a handler too, for SIGCHLD, when a worker dies; the gate
    holds it back likewise. (Blocking signals would not do: Python runs the handlers in the main
    thread whichever thread receives the signal.)
    """

    def __init__(self) -> None:
        self._installed: dict[int, Handler | int] = {}
        self._child_handler: Handler | int = signal.SIG_DFL
        self._closed = False
        self._pending: dict[int, None] = {}

    def install(self) -> None:
        """Takes the signals over, where Python allows it; the gate is open."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            # A run under nohup keeps ignoring what it was told to ignore.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._installed[number] = signal.signal(number, self._on_stop) or signal.SIG_DFL

    def close(self) -> None:
        """From now on signals are only noted."""
        if self._closed:
            return
        self._closed = True
        if self._installed and hasattr(signal, "SIGCHLD"):
            # Taken over each time, because the data loader sets its handler in between.
            self._child_handler = signal.signal(signal.SIGCHLD, self._note) or signal.SIG_DFL

    def open(self) -> None:
        """Lets signals through again, first those noted.

        Raises:
            KeyboardInterrupt: SIGINT came while the gate was closed.
            SystemExit: SIGTERM did; with the shell's exit status for it.
            RuntimeError: a worker of a data loader died.
        """
        noted = self._release()
        for number in (signal.SIGINT, signal.SIGTERM):
            if number in noted:
                self._on_stop(number, None)
        if getattr(signal, "SIGCHLD", None) in noted and callable(self._child_handler):
            self._child_handler(signal.SIGCHLD, None)

    def uninstall(self) -> None:
        """Gives the signals back; those noted are dropped."""
        self._release()
        for number, handler in self._installed.items():
            signal.signal(number, handler)
        self._installed.clear()

    def _release(self) -> list[int]:
        if self._closed and self._installed and hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, self._child_handler)
        self._closed = False
        noted = list(self._pending)
        self._pending.clear()
        return noted

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pending[number] = None

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self._closed:
            logger.warning("%s: stopping as soon as possible", signal.Signals(number).name)
            self._note(number, frame)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)
