"""Runs that are killed at random moments and resumed, against one that was never stopped.

Usage: exact_runs.py KILLS [PROCESSES] [SEED] [key=value ...]

Everything is SIGKILL, of all processes at once: while they start, train, evaluate and write
checkpoints. Compares bit for bit what is left, and raises at the first difference.
"""

import contextlib
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from coco_samples import make_content, write_coco
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch.distributed.elastic.utils.distributed import get_free_port

from vitadapter.checkpoint.reading import read_checkpoint_file
from vitadapter.commands.train import train
from vitadapter.engine.checkpoint import saved_files

__all__ = [
    "MOMENTS",
    "_TIMES",
    "DigestingRCNN",
    "KilledRun",
    "check_equal",
    "data_overrides",
    "rows_of",
]

logger = logging.getLogger(__name__)

HELPERS = Path(__file__).parent
_FORKS = get_context("forkserver")
# Python 3.11 looks for them without the path of the tests.
_FORKS.set_forkserver_preload(["vitadapter.commands.train", "vitadapter.engine.trainer"])
_TIMES = {"time", "data_time", "rank_data_time", "images_per_second", "eta_seconds", "memory_mb"}
"""Scalars that no two runs have in common."""

MOMENTS = ("starting", "training", "training", "training", "writing", "writing", "saved")
"""When a run is killed, each as likely as it is often: "writing" while a checkpoint is written,
"saved" when it has just been."""


class DigestingRCNN(GeneralizedRCNN):
    """Keeps a checksum of all images and boxes, of all processes, that it was trained on so far.

    What the processes have in their buffers before an evaluation is among the scalars, too.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.register_buffer("digest", torch.zeros((), dtype=torch.long))

    def forward(self, batch: list[dict]) -> object:
        """Adds the batch to the checksum."""
        if self.training:
            digest = 0
            for sample in batch:
                for part in (sample["image"], sample["instances"].gt_boxes.tensor):
                    digest = zlib.crc32(part.numpy().tobytes(), digest)
            for other in comm.all_gather(digest):
                self.digest.mul_(1_000_003).add_(other)
        return super().forward(batch)

    def train(self, mode: bool = True) -> "DigestingRCNN":
        """Before an evaluation, shows the batch statistics of each process as a scalar."""
        if not mode and has_event_storage():
            digest = 0
            for buffer in self.buffers():
                digest = zlib.crc32(buffer.numpy().tobytes(), digest)
            for rank, other in enumerate(comm.all_gather(digest)):
                get_event_storage().put_scalar(f"buffers_{rank}", other, smoothing_hint=False)
        return super().train(mode)


def data_overrides(folder: Path, images: int = 11) -> list[str]:
    """Writes images of several orientations, one of which cannot be read."""
    content = make_content(images=images)
    for number, image in enumerate(content["images"]):
        image.update({"width": 96} if number % 3 else {"height": 80})
    train = write_coco(folder / "train", content)
    Path(train[1], content["images"][4]["file_name"]).write_bytes(b"no image")
    test = write_coco(folder / "test", make_content(images=3))
    return [
        *(f"dataset.train.json_file={train[0]}", f"dataset.train.image_root={train[1]}"),
        *(f"dataset.test.json_file={test[0]}", f"dataset.test.image_root={test[1]}"),
    ]


def rows_of(output: Path) -> list[dict[str, object]]:
    """The rows of `metrics.json`, without times."""
    lines = (output / "metrics.json").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in _TIMES} for line in lines]


def _leaves(node: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping | list | tuple):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        yield name, len(node)
        for key, value in items:
            if key not in _TIMES and key != "config":
                yield from _leaves(value, f"{name}.{key}")
    elif isinstance(node, torch.Tensor):
        # Bytes, so that NaN and -0 are what they are.
        yield name, (node.dtype, node.shape, node.contiguous().numpy().tobytes())
    else:
        yield name, repr(node)


def check_equal(whole: Path, resumed: Path) -> Counter:
    """Compares two output folders bit for bit; returns how much was compared.

    Raises:
        AssertionError: names what differs.
    """
    counts: Counter = Counter()
    files = [{p.name for p in saved_files(folder)} for folder in (whole, resumed)]
    assert files[0] == files[1], files
    assert (whole / "last_checkpoint").read_text() == (resumed / "last_checkpoint").read_text()
    for name in sorted(files[0]):
        contents = [read_checkpoint_file(f / name) for f in (whole, resumed)]
        first, second = (dict(_leaves(content, name)) for content in contents)
        differing = [k for k in {*first, *second} if first.get(k) != second.get(k)]
        # Their lengths differ by times, which a start measures only after some iterations.
        differing = [k for k in differing if not k.endswith(".ScalarKeeper")]
        assert not differing, (name, sorted(differing)[:5], len(differing))
        counts["files"] += 1
        counts["values"] += len(first)
    rows = [rows_of(folder) for folder in (whole, resumed)]
    for first_row, second_row in zip(*rows, strict=True):
        assert json.dumps(first_row) == json.dumps(second_row), (first_row, second_row)
    counts["rows"] = len(rows[0])
    counts["evaluations"] = sum("bbox/AP" in row for row in rows[0])
    return counts


def _become(rank: int, processes: int, port: int, log: Path, arguments: list[str]) -> None:
    """Turns a forked process into one of a run, as torchrun would start it."""
    os.setsid()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ.update(LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1")
    sys.path.insert(0, str(HELPERS))
    torch.set_num_threads(1)
    train(arguments)


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


class KilledRun:
    """A run in a folder of its own, by the command line's function in forked processes.

    Imports, which are most of a start, are made once, in the process that they are forked from. It
    is not this one, in which PyTorch may have started threads that no fork has.
    """

    def __init__(self, folder: Path, output: str, processes: int, overrides: list[str]) -> None:
        self.output, self._log = folder / output, folder / f"{output}.txt"
        self._processes = processes
        self._arguments = [
            *(str(HELPERS / "exact_mask_rcnn.py"), "--resume"),
            f"dataloader.train.total_batch_size={4 * processes}",
            *(f"train.output_dir={self.output}", *overrides),
        ]

    def start(self) -> list[BaseProcess]:
        """All processes of the run, each the first of its own group."""
        port = get_free_port()
        self._log.write_text("")
        started = [
            _FORKS.Process(
                target=_become, args=(rank, self._processes, port, self._log, self._arguments)
            )
            for rank in range(self._processes)
        ]
        for process in started:
            process.start()
        return started

    def _end(self, started: list[BaseProcess]) -> None:
        for process in started:
            process.join(900)
            assert process.exitcode == 0, self._log.read_text()

    def finish(self) -> float:
        """Lets the run end; returns the seconds."""
        start = time.monotonic()
        self._end(self.start())
        return time.monotonic() - start

    def _seen(self) -> int:
        """Number of iterations that a file shows to be complete, while this start goes on."""
        found = [int(p.stem[-7:]) + 1 for p in saved_files(self.output, "model_0*")]
        file = self.output / "metrics.json"
        lines = file.read_text().splitlines() if file.is_file() else []
        return max([*found, *(json.loads(line)["iteration"] + 1 for line in lines[-1:])], default=0)

    def kill(self, rng: random.Random, start_seconds: float, mode: str) -> str | None:
        """Starts and kills the run; returns when, or None if it has ended before.

        Args:
            rng: draws the moment.
            start_seconds: about the time that a start takes.
            mode: one of `MOMENTS`.
        """
        name = "sharded_checkpoint" if "train.parallel=fsdp2" in self._arguments else "checkpoint"
        partial, tag = self.output / f"{name}.partial", self.output / "last_checkpoint"
        waited = {"writing": partial, "saved": tag}
        before, begun, started = time.time(), self._seen(), self.start()
        deadline = time.monotonic() + rng.uniform(0.2, 1.0) * start_seconds
        more = rng.randint(1, 8)
        delay = rng.expovariate(20.0) if mode == "training" else rng.uniform(0, 0.004)
        while all(process.is_alive() for process in started):
            if mode == "starting" and time.monotonic() > deadline:
                break
            if mode == "training" and self._seen() >= begun + more:
                break
            # The start before may have left one, so it has to be new.
            if mode in waited and _changed(waited[mode]) > before:
                break
            time.sleep(0.0005 if mode in waited else 0.01)
        time.sleep(delay)
        if not all(process.is_alive() for process in started):
            self._end(started)
            return None
        for process in started:
            # It may not have become the first of a group yet; then it has no workers either.
            process.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in started:
            process.join()
        return f"{mode}, {self._seen()} iterations seen" + ", a partial file" * partial.exists()


def main(kills: int, processes: int, seed: int, overrides: list[str]) -> None:
    """Kills runs `kills` times in all, lets them end and compares each."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = [*data_overrides(folder), *overrides]
        whole = KilledRun(folder, "whole", processes, overrides)
        seconds = whole.finish()
        logger.info("%d processes, never stopped: %.1f s", processes, seconds)
        done, runs = 0, 0
        while done < kills:
            runs += 1
            run = KilledRun(folder, f"killed{runs}", processes, overrides)
            moment = ""
            while done < kills and moment is not None:
                moment = run.kill(rng, 0.4 * seconds, rng.choice(MOMENTS))
                if moment is not None:
                    done += 1
                    logger.info("kill %d: %s", done, moment)
            run.finish()
            counts = check_equal(whole.output, run.output)
            logger.info("run %d, after %d kills: equal bit for bit, %s", runs, done, dict(counts))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    numbers = [int(text) for text in sys.argv[1:] if "=" not in text]
    main(*numbers, *[20, 1, 0][len(numbers) :], [t for t in sys.argv[1:] if "=" in t])
