"""Training that is killed at random moments and resumed. Usage: killed_runs.py KILLS [SEED]

Half of the kills are SIGKILL, half SIGTERM, of the training process alone or of all its processes,
with and without data loader workers. Logs what each did and raises at the first fault.
"""

import dataclasses
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from coco_samples import make_content, write_coco

__all__ = ["Kill", "KilledRun", "wait_for_group"]

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[2]
_PERIOD, _KEPT = 4, 3
# Python prints the exception of a signal where it is lost.
_LOST_STOP = re.compile(
    r"^Exception ignored .*\n(Traceback .*\n( .*\n)+)?(SystemExit: 143|KeyboardInterrupt).*\n", re.M
)
# A worker's thread that hands a batch over prints what it meets where the reader has gone, unless
# it is killed meanwhile: that of the training process would end with an exception.
_LOST_READER = re.compile(
    r"^Traceback .*\n(( .*\n)*?  .*resource_sharer\.py.*\n( .*\n?)*|( .*\n?)*\Z)", re.M
)
# PyTorch's workers look every 5 s whether their parent is there.
_WORKERS_END_SECONDS = 15.0


@dataclasses.dataclass
class Kill:
    """What to do to a start of a run."""

    number: signal.Signals
    after: float  # seconds, or, if these are over, as soon as there are so many iterations
    to_group: bool
    num_workers: int
    max_iter: int
    iterations: int = 0


def wait_for_group(group: int) -> float:
    """Waits until no process of a group is left; returns the seconds that this took."""
    start = time.monotonic()
    while time.monotonic() < start + _WORKERS_END_SECONDS:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return time.monotonic() - start
        time.sleep(0.02)
    raise AssertionError(f"processes of the group {group} are left")


class KilledRun:
    """A run of the tiny detector in a folder of its own, through the training script."""

    def __init__(self, folder: Path) -> None:
        self.output, self._log = folder / "output", folder / "log.txt"
        train = write_coco(folder / "train", make_content(images=4))
        test = write_coco(folder / "test", make_content(images=8))
        self._command = [
            sys.executable,
            str(REPOSITORY / "scripts/lazyconfig_train_net.py"),
            *("--resume", "--config-file", str(REPOSITORY / "tests/helpers/tiny_mask_rcnn.py")),
            *(f"dataset.train.json_file={train[0]}", f"dataset.train.image_root={train[1]}"),
            *(f"dataset.test.json_file={test[0]}", f"dataset.test.image_root={test[1]}"),
            *(f"train.output_dir={self.output}", "train.eval_period=10", "train.ema.enabled=True"),
            *(f"train.checkpointer.period={_PERIOD}", f"train.checkpointer.max_to_keep={_KEPT}"),
        ]

    def last_iteration(self) -> int:
        """Of the checkpoint to resume from, which is looked at; -1 where there is none."""
        tag = self.output / "last_checkpoint"
        if not tag.is_file():
            return -1
        state = torch.load(self.output / tag.read_text(), weights_only=True)
        for part in (state["model"], state["model_ema"]):
            assert all(t.isfinite().all() for t in part.values())
        assert state["trainer"]["iteration"] == state["iteration"]
        return state["iteration"]

    def start(self, num_workers: int, max_iter: int) -> subprocess.Popen[bytes]:
        """A process of the run, and the first of its own group of processes."""
        workers = [f"dataloader.{part}.num_workers={num_workers}" for part in ("train", "test")]
        with self._log.open("w") as log:
            return subprocess.Popen(
                [*self._command, *workers, f"train.max_iter={max_iter}"],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )

    def _logged(self, first: int, since: float) -> list[int]:
        """The iterations from the first one on that `metrics.json` has, if it is new."""
        file = self.output / "metrics.json"
        is_new = file.is_file() and file.stat().st_mtime >= since
        lines = file.read_text().splitlines() if is_new else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return [r["iteration"] for r in rows if "total_loss" in r and r["iteration"] >= first]

    def kill(self, kill: Kill) -> bool:
        """Starts, kills and checks what is left; returns whether the run had not ended before."""
        first = self.last_iteration() + 1
        since = time.time()
        process, start = self.start(kill.num_workers, kill.max_iter), time.monotonic()
        while process.poll() is None and (
            time.monotonic() < start + kill.after
            or len(self._logged(first, since)) < kill.iterations
        ):
            time.sleep(0.02)
        is_sent = process.poll() is None
        if is_sent:
            (os.killpg if kill.to_group else os.kill)(process.pid, kill.number)
        code = process.wait(600)
        seconds = wait_for_group(process.pid)
        is_kill = kill.number == signal.SIGKILL
        expected = {0, -9 if is_kill else 143} if is_sent else {0}
        assert code in expected, f"rc {code} after {kill}:\n{self._log.read_text()}"
        log = self._log.read_text()
        assert "Traceback" not in _LOST_READER.sub("", _LOST_STOP.sub("", log)), log
        assert is_kill or seconds < 1, f"{kill}: processes were left for {seconds:.1f} s"

        seen = max(self._logged(first, since), default=first - 1)
        last = self.last_iteration()
        lost = _PERIOD if is_kill and is_sent else 0
        assert last >= seen - lost, f"{kill}: {seen} was complete, {last} is the last"
        # A kill may come between the publishing of a file and the removal of the oldest, which the
        # next save makes up for.
        self.check_files(_KEPT + 1)
        if code == 0:
            final = torch.load(self.output / "model_final.pth", weights_only=True)
            assert final["iteration"] == last >= kill.max_iter - 1
        logger.info(
            "%s after %.2f s, %d workers, %s: rc %d, iterations %d to %d, saved %d, "
            "processes left for %.1f s",
            kill.number.name if is_sent else "no signal",
            kill.after,
            kill.num_workers,
            "all processes" if kill.to_group else "one process",
            *(code, first, seen, last, seconds),
        )
        return is_sent

    def check_files(self, most: int) -> None:
        """Each published file is whole, and no more than so many are named by an iteration."""
        files = list(self.output.glob("*.pth"))
        for file in files:
            torch.load(file, weights_only=True)
        assert len([f for f in files if f.stem != "model_final"]) <= most, files

    def finish(self) -> None:
        """Lets the run end."""
        max_iter = self.last_iteration() + 3
        assert self.start(0, max_iter).wait(120) == 0, self._log.read_text()
        assert (self.output / "last_checkpoint").read_text() == "model_final.pth"
        assert self.last_iteration() == max_iter - 1
        self.check_files(_KEPT)


def main(kills: int, seed: int) -> None:
    """Kills a run `kills` times and lets it end; logs a line about each start."""
    rng = random.Random(seed)
    left = [signal.SIGKILL, signal.SIGTERM] * (kills // 2)
    with tempfile.TemporaryDirectory() as folder:
        run = KilledRun(Path(folder))
        start = time.monotonic()
        run.start(0, 1).wait()
        seconds = time.monotonic() - start
        logger.info("a start with one iteration takes %.1f s", seconds)
        while left:
            # Some while it starts, most while it trains, evaluates, saves and ends.
            moment = rng.uniform(0, 1) if rng.random() < 0.25 else rng.uniform(0.6, 1.8)
            kill = Kill(
                number=left[-1],
                after=seconds * moment,
                to_group=rng.random() < 0.5,
                num_workers=rng.choice((0, 2)),
                max_iter=run.last_iteration() + rng.choice((10, 1000, 1000)),
            )
            if run.kill(kill):
                left.pop()
        run.finish()
    logger.info("killed %d times, half by SIGKILL and half by SIGTERM: nothing lost", kills)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
