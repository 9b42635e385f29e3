"""Who may write to an output folder."""

import errno
import fcntl
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from omegaconf import DictConfig
from training_samples import act, last

from vitadapter.engine import run_lock
from vitadapter.engine.run_checks import SetupError, check_run
from vitadapter.engine.run_lock import RunLock, check_unlocked
from vitadapter.engine.trainer import do_train

FORK = multiprocessing.get_context("fork")


def hold_until_killed(folder: Path, options: tuple[str, ...], started: Connection) -> None:
    if "abrupt" in options:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: os._exit(128 + number))
    with RunLock(folder):
        child = os.fork() if "fork" in options else -1  # as a worker of a data loader
        if child == 0:
            time.sleep(60)
            os._exit(0)
        started.send(child)
        time.sleep(60)


def hold(folder: Path, *options: str) -> tuple[BaseProcess, int]:
    """A process that holds the lock, and the process id of its fork."""
    started, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=hold_until_killed, args=(folder, options, sender))
    process.start()
    return process, started.recv()


def exit_status(process: BaseProcess) -> int | None:
    process.join()  # with a timeout it would wait for the fork, too
    return process.exitcode


def of_another_machine(folder: Path) -> Path:
    """A lock file that a run on another machine has left behind or keeps."""
    folder.mkdir()
    path = folder / "run.lock"
    owner = {"host": "node7", "boot": "b", "process": 12, "started": "yesterday"}
    path.write_text(json.dumps(owner))
    return path


def test_a_second_run_is_refused_while_the_first_goes_on(cfg: DictConfig, tmp_path: Path) -> None:
    folder, messages = Path(cfg.train.output_dir), []

    def start_another(sample: dict) -> None:
        for resume in (False, True):
            with pytest.raises(SetupError) as refused:
                do_train(cfg.copy(), resume=resume)
            messages.append(str(refused.value))
        check_run(with_weights, eval_only=True)

    with_weights = cfg.copy()
    with_weights.train.init_checkpoint = str(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(b"weights")
    act(cfg, start_another, at=1)
    do_train(cfg)
    assert last(cfg) == "model_final.pth"
    assert not (folder / "run.lock").exists()
    assert len(messages) == 2
    for message in messages:
        assert f"in use by process {os.getpid()} on " in message
        assert re.search(r"train\.output_dir=\.\.\..*delete .*run\.lock", message)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_nothing_is_left_behind(tmp_path: Path, error: type[BaseException]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def run() -> None:
        with RunLock(tmp_path / "run"):
            assert (tmp_path / "run" / "run.lock").exists()
            raise error

    with pytest.raises(error):
        run()
    assert list((tmp_path / "run").iterdir()) == []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("options", "number", "status"),
    [
        ([], signal.SIGTERM, 143),
        (["abrupt"], signal.SIGTERM, 143),
        (["abrupt"], signal.SIGINT, 130),
    ],
)
def test_signals_free_the_folder(
    tmp_path: Path, options: list[str], number: int, status: int
) -> None:
    process, _ = hold(tmp_path, *options)
    with pytest.raises(ValueError, match=f"in use by process {process.pid} on "):
        check_unlocked(tmp_path)
    os.kill(process.pid, number)
    assert exit_status(process) == status
    assert list(tmp_path.iterdir()) == []


def test_a_signal_to_a_fork_does_not_free_the_folder(tmp_path: Path) -> None:
    process, fork = hold(tmp_path, "fork")
    os.kill(fork, signal.SIGTERM)
    with pytest.raises(ValueError, match=f"in use by process {process.pid} on "):
        RunLock(tmp_path).__enter__()
    process.terminate()
    assert exit_status(process) == 143
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_is_recognised_at_once(tmp_path: Path, caplog) -> None:
    process, fork = hold(tmp_path, "fork")
    process.kill()
    assert exit_status(process) == -signal.SIGKILL
    try:
        # As if another process had been given its number: it is not asked.
        path = tmp_path / "run.lock"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "process": os.getpid()}))
        start = time.monotonic()
        with RunLock(tmp_path):
            assert json.loads(path.read_text())["process"] == os.getpid()
        assert time.monotonic() - start < 5
    finally:
        os.kill(fork, signal.SIGKILL)
    assert "was left behind by process" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff"])
def test_a_lock_without_an_owner_is_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.lock").write_bytes(content)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()


def test_another_machine_is_given_time_to_show_life(tmp_path: Path, caplog) -> None:
    path = of_another_machine(tmp_path / "run")
    ended = threading.Event()

    def show_life() -> None:
        while not ended.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=show_life)
    thread.start()
    try:
        with pytest.raises(ValueError, match="in use by process 12 on node7, which started"):
            RunLock(tmp_path / "run", beat=0.05, patience=20).__enter__()
    finally:
        ended.set()
        thread.join()
    with RunLock(tmp_path / "run", beat=0.05, patience=0.3):
        pass
    assert "waiting 0.3 s for a sign of life" in caplog.text
    assert "left behind by process 12 on node7" in caplog.text


def test_another_machine_may_end_meanwhile(tmp_path: Path) -> None:
    path = of_another_machine(tmp_path / "run")
    timer = threading.Timer(0.3, path.unlink)
    timer.start()
    with RunLock(tmp_path / "run", beat=0.05, patience=60):
        assert json.loads(path.read_text())["process"] == os.getpid()


def test_an_owner_shows_life(tmp_path: Path) -> None:
    with RunLock(tmp_path, beat=0.05):
        os.utime(tmp_path / "run.lock", (0, 0))
        end = time.monotonic() + 600
        while (tmp_path / "run.lock").stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.05)


def is_not_allowed(*arguments: object) -> None:
    raise PermissionError


@pytest.mark.parametrize("is_windows", [False, True])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch, is_windows: bool) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(run_lock.fcntl, "flock", unsupported)
    if is_windows:
        monkeypatch.setattr(run_lock, "fcntl", None)
        monkeypatch.setattr(Path, "unlink", is_not_allowed)
        with RunLock(tmp_path, beat=0.05):
            pass
        assert (tmp_path / "run.lock").read_bytes() == b""
    with (
        RunLock(tmp_path, beat=0.05),
        pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"),
    ):
        RunLock(tmp_path, beat=0.05, patience=20).__enter__()


def test_a_lock_that_somebody_deleted_is_not_taken_from_the_next(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / "run.lock").unlink()
        second = RunLock(tmp_path)
        second.__enter__()
    assert (tmp_path / "run.lock").exists()
    second.__exit__(None, None, None)
    assert not (tmp_path / "run.lock").exists()


def race(folder: str, barrier: object, inside: object, clashes: object) -> None:
    barrier.wait()
    for _ in range(30):
        try:
            with RunLock(folder):
                if not inside.acquire(block=False):
                    clashes.value += 1
                else:
                    inside.release()
        except ValueError:
            pass


def test_never_two_at_a_time(tmp_path: Path) -> None:
    barrier, inside, clashes = FORK.Barrier(3), FORK.Lock(), FORK.Value("i", 0)
    arguments = (str(tmp_path), barrier, inside, clashes)
    processes = [FORK.Process(target=race, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert clashes.value == 0


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train\.output_dir must be a folder .*file"):
        RunLock(tmp_path / "file" / "run").__enter__()


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    check_unlocked(tmp_path / "absent")
    check_unlocked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with (tmp_path / "run.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="in use by another process"):
            check_unlocked(tmp_path)
