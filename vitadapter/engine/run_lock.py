"""Allows only one run at a time in an output folder, by a lock file that names its owner."""

import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

from vitadapter.engine.agreement import agree
from vitadapter.engine.signals import Handler, set_handlers

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

__all__ = ["RunLock", "check_unlocked"]

logger = logging.getLogger(__name__)

_NAME = "run.lock"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux only; elsewhere the host name must do
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)

# A forked process, such as a worker of a data loader, shares the lock of its parent, and would keep
# it after the parent is killed.
_held: set[int] = set()


def _give_up_in_fork() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_give_up_in_fork)


def _lock(descriptor: int) -> bool:
    """Locks a file for this process; False if the system has no such locks.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


class _Owner(NamedTuple):
    host: str
    boot: str
    process: int
    started: str

    @classmethod
    def this_process(cls) -> "_Owner":
        boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        return cls(socket.gethostname(), boot, os.getpid(), started)

    @classmethod
    def read(cls, descriptor: int) -> "_Owner | None":
        """Reads a lock file; None if its process was killed before it wrote its name."""
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            return cls(**json.loads(os.read(descriptor, 1 << 16)))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, which started {self.started}"

    def is_of_machine(self, other: "_Owner") -> bool:
        return (self.host, self.boot) == (other.host, other.boot)


class RunLock:
    """A lock on an output folder, held by the main process of a run while the run writes to it.

    On one machine, the operating system frees the lock when the process that holds it ends, for
    whatever reason. A lock from another machine, or on a file system without locks, counts as
    abandoned if its owner has not renewed it for `patience` seconds. A SIGINT or SIGTERM that
    nothing else handles frees the lock before it ends the process.

    Args:
        folder: the output folder; created if it does not exist.
        beat: seconds between two signs of life.
        patience: seconds to wait for a sign of life of an owner on another machine.
    """

    def __init__(self, folder: str | Path, *, beat: float = 10.0, patience: float = 90.0) -> None:
        self._path = Path(folder, _NAME)
        self._beat, self._patience = beat, patience
        self._descriptor: int | None = None
        self._ended = threading.Event()
        self._process = os.getpid()
        self._handlers: dict[int, Handler] = {}

    def __enter__(self) -> "RunLock":
        """Takes the lock.

        Raises:
            ValueError: in all processes, if another run holds the lock or the folder cannot be
                written to.
        """
        agree(self._acquire_or_refuse)
        if self._descriptor is not None:
            threading.Thread(target=self._show_life, daemon=True).start()
            self._handlers = set_handlers(self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._release()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Takes the lock and releases it at once, if there is a lock file; else does nothing.

        Raises:
            ValueError: as on entering.
        """
        if self._path.exists():
            self._acquire_or_refuse()
            self._release()

    def _acquire_or_refuse(self) -> None:
        try:
            self._acquire()
        except OSError as error:
            raise ValueError(
                f"train.output_dir must be a folder that can be written to, got {error}"
            ) from error

    def _acquire(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while self._descriptor is None:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if self._take(descriptor):
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
        _held.add(descriptor)

    def _take(self, descriptor: int) -> bool:
        """Takes the lock on an open file; False if its owner has just removed that."""
        try:
            is_certain = _lock(descriptor)
        except BlockingIOError:
            raise self._refusal(_Owner.read(descriptor)) from None
        if not self._is_current(descriptor):
            return False
        owner, this = _Owner.read(descriptor), _Owner.this_process()
        if owner is not None:
            if not (is_certain and owner.is_of_machine(this)) and not self._is_abandoned(owner):
                return False
            logger.warning("%s was left behind by %s: taking it over", self._path, owner)
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(this._asdict()).encode())
        os.fsync(descriptor)
        return True

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _is_abandoned(self, owner: _Owner) -> bool:
        """Waits for a sign of life; False if the owner has removed the file meanwhile."""
        logger.warning(
            "%s names %s: waiting %g s for a sign of life", self._path, owner, self._patience
        )
        end = time.monotonic() + self._patience
        try:
            before = self._path.stat().st_mtime_ns
            while time.monotonic() < end:
                time.sleep(min(1.0, self._beat))
                if self._path.stat().st_mtime_ns != before:
                    raise self._refusal(owner)
        except FileNotFoundError:
            return False
        return True

    def _refusal(self, owner: _Owner | None) -> ValueError:
        return ValueError(
            f"train.output_dir={self._path.parent} is in use by {owner or 'another process'}: "
            "wait until that run has ended, stop it, or set another train.output_dir=... "
            f"(if it is certain that it has ended, delete {self._path})"
        )

    def _show_life(self) -> None:
        while not self._ended.wait(self._beat):
            with contextlib.suppress(OSError):  # the file system may be away for a while
                os.utime(self._path)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._release()
        handler = self._handlers.get(number)
        if callable(handler):
            handler(number, frame)  # may end the process at once
        else:
            sys.exit(128 + number)

    def _release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None or os.getpid() != self._process:  # a fork does not hold the lock
            return
        _held.discard(descriptor)
        if self._is_current(descriptor):  # otherwise, another run has taken it over
            os.ftruncate(descriptor, 0)  # names no owner if it cannot be removed
            with contextlib.suppress(PermissionError):  # Windows cannot remove open files
                self._path.unlink()
        os.close(descriptor)


def check_unlocked(folder: str | Path) -> None:
    """Refuses a folder in which another run is in progress.

    Args:
        folder: an output folder, which need not exist.

    Raises:
        ValueError: in all processes; names the owner, and what to do.
    """
    agree(RunLock(folder).check)
