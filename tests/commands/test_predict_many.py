"""Predicting many inputs: batches, lists, damaged files, kills, and several processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from vitadapter.commands import predict

Found = dict[tuple[str, int], list[dict]]


@pytest.fixture
def options(cfg: DictConfig, tiny_config: Path, tmp_path: Path) -> list[str]:
    """The options of every call: random weights that detect something everywhere."""
    torch.manual_seed(1)
    weights = tmp_path / "weights.pth"
    torch.save({"model": instantiate(cfg.model).state_dict()}, weights)
    given = ["--config-file", str(tiny_config), "--weights", str(weights)]
    return [*given, "--score-threshold", "0", "--json", "--no-pictures"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two sizes by turns, a damaged one, and a video."""
    folder = tmp_path / "many"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(7):
        side = (48, 64) if number % 2 else (64, 40)
        image = rng.integers(0, 256, (*side, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / ("below" if number > 4 else "") / f"{number}.png"), image)
    (folder / "damaged.png").write_bytes((folder / "1.png").read_bytes()[:500])
    writer = cv2.VideoWriter(str(folder / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for _ in range(5):
        writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    return folder


def by_image(output: Path) -> Found:
    """What was found in each image and frame, best first."""
    found: Found = {}
    for result in json.loads((output / "predictions.json").read_text()):
        found.setdefault((result["file_name"], result.get("frame", -1)), []).append(result)
    return found


def assert_same(found: Found, expected: Found) -> None:
    assert list(found) == list(expected)  # also in the same order
    for key, results in expected.items():
        for field in ("score", "bbox", "category_id"):
            ours, theirs = ([result[field] for result in r] for r in (found[key], results))
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4, err_msg=f"{key}")


def run(options: list[str], source: Path, output: Path, *more: str) -> int:
    return predict.script([*options, "--input", str(source), "--output", str(output), *more])


def test_batches_workers_and_lists_predict_what_single_images_do(
    options: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(options, folder, tmp_path / "single", "--workers", "0") == 1
    output = capsys.readouterr().out
    assert "8 of 9 inputs done" in output
    assert f"failed: {folder / 'damaged.png'}: " in output
    expected = by_image(tmp_path / "single")
    assert len(expected) == 12  # 7 images and 5 frames
    many = ("--batch-size", "3", "--workers", "2")
    assert run(options, folder, tmp_path / "batches", *many) == 1
    assert_same(by_image(tmp_path / "batches"), expected)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    (folder / "list.txt").write_text("\n".join(names) + "\n\n", "utf-8-sig")  # as Notepad does
    assert run(options, folder / "list.txt", tmp_path / "listed", *many) == 1
    assert_same(by_image(tmp_path / "listed"), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a.png\nother.txt\n", "must name images, folders or videos, got "), (b"\xff", "cannot be")],
)
def test_bad_lists_are_refused(
    options: list[str],
    tmp_path: Path,
    content: bytes,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    assert run(options, tmp_path / "list.txt", tmp_path / "out") == 2
    assert f"the list {tmp_path / 'list.txt'} {message}" in capsys.readouterr().err
    for option, rule in (("--batch-size", "at least 1, got -1"), ("--workers", "negative, got -1")):
        with pytest.raises(SystemExit):
            run(options, tmp_path, tmp_path / "out", option, "-1")
        assert rule in capsys.readouterr().err


def processes(
    count: int, options: list[str], source: Path, output: Path, *more: str
) -> subprocess.Popen[str]:
    """Starts `vitadapter predict` in processes of one thread."""
    given = [options[1], str(source), *options[2:], "--output", str(output), *more]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, *(launcher if count > 1 else []), "-m", "vitadapter", "predict"]
    return subprocess.Popen(
        [*command, *given],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_run_goes_on_in_two_processes(
    options: list[str], folder: Path, tmp_path: Path
) -> None:
    (folder / "damaged.png").unlink()
    assert run(options, folder, tmp_path / "single") == 0
    output = tmp_path / "killed"
    killed = processes(1, options, folder, output)
    while not list(output.glob("json/*.json")):
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (output / ".vitadapter-left").mkdir(exist_ok=True)  # as of a video that was being written
    before = {path: path.stat().st_mtime_ns for path in output.glob("json/**/*.json")}
    both = processes(2, options, folder, output, "--skip-existing", "--batch-size", "2")
    printed = both.communicate(timeout=300)[0]
    assert both.returncode == 0, printed
    assert f"8 of 8 inputs done ({len(before)} were there)" in printed
    left = 7 - sum(path.name.endswith(".png.json") for path in before)
    # The bar counts the images of both processes; there is none for a single one.
    assert set(re.findall(r"images: .*?\d+/(\d+) ", printed)) == (
        {str(left)} if left > 1 else set()
    )
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert not list(output.glob(".vitadapter-*"))
    assert_same(by_image(output), by_image(tmp_path / "single"))
