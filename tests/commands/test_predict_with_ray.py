"""Predictions by actors: with a stand-in for Ray, and with Ray itself where it is installed."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from vitadapter.commands import predict, predict_with_ray

Row = dict[str, int]


class _Rows:
    """What is used of a `ray.data.Dataset`, in this process; keeps the options it was given."""

    options: dict[str, object]

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def map_batches(
        self,
        actor: Callable[..., Callable[[dict[str, np.ndarray]], dict[str, list[int]]]],
        *,
        fn_constructor_args: tuple[object, ...],
        batch_size: int,
        **options: object,
    ) -> "_Rows":
        _Rows.options = {"batch_size": batch_size, **options}
        here = Path.cwd()
        with tempfile.TemporaryDirectory() as elsewhere:
            os.chdir(elsewhere)  # as Ray starts actors in a folder of its own
            try:
                call, found = actor(*fn_constructor_args), []
            except BaseException:
                os.chdir(here)
                raise
        assert Path.cwd() == here
        for start in range(0, len(self._rows), batch_size):
            batch = self._rows[start : start + batch_size]
            answer = call({"number": np.array([row["number"] for row in batch])})
            found += [dict(zip(answer, v, strict=True)) for v in zip(*answer.values(), strict=True)]
        return _Rows(found)

    def iter_rows(self) -> Iterator[Row]:
        return iter(self._rows)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.data"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    data = sys.modules["ray.data"]
    monkeypatch.setattr(sys.modules["ray"], "data", data, raising=False)
    monkeypatch.setattr(data, "from_items", _Rows, raising=False)
    monkeypatch.setattr(data, "ActorPoolStrategy", lambda size: size, raising=False)


@pytest.fixture
def arguments(cfg: DictConfig, tiny_config: Path, tmp_path: Path) -> list[str]:
    """Config, weights that detect something everywhere, and images, one of which is damaged."""
    torch.manual_seed(1)
    weights = tmp_path / "weights.pth"
    torch.save({"model": instantiate(cfg.model).state_dict()}, weights)
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        side = (48, 64) if number % 2 else (64, 40)
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (*side, 3), dtype=np.uint8))
    (folder / "damaged.png").write_bytes((folder / "1.png").read_bytes()[:500])
    options = ["--score-threshold", "0", "--json", "--no-pictures", "--batch-size", "1"]
    return [str(tiny_config), str(folder), "--weights", str(weights), *options]


def results(output: Path) -> list[dict]:
    return json.loads((output / "predictions.json").read_text())


def check(
    arguments: list[str], actor_options: list[str], tmp_path: Path, printed: Callable[[], str]
) -> None:
    """Actors write what one process does, and go on with what is left."""
    alone, actors = tmp_path / "alone", tmp_path / "actors"
    assert predict.predict([*arguments, "--output", str(alone)]) == 1  # one image is damaged
    output = os.path.relpath(actors)
    given = [*arguments, "--output", output, "--gpus-per-actor", "0", *actor_options]
    assert predict_with_ray.main(given) == 1
    assert "6 of 7 inputs done" in printed()
    assert len(results(alone)) > 6
    assert results(actors) == results(alone)
    (actors / "json" / "3.png.json").unlink()
    times = {path: path.stat().st_mtime_ns for path in actors.glob("json/*")}
    assert predict_with_ray.main([*given, "--skip-existing"]) == 1
    assert "6 of 7 inputs done (5 were there)" in printed()
    assert results(actors) == results(alone)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_actors_write_what_one_process_does(
    stand_in: None, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(arguments, ["--actors", "2"], tmp_path, lambda: capsys.readouterr().out)
    assert _Rows.options == {"batch_size": 4, "compute": 2, "num_cpus": 1, "num_gpus": 0}
    for name in ("damaged.png", *(f"{number}.png" for number in range(6))):
        (tmp_path / "images" / name).unlink()
    assert predict_with_ray.main([*arguments, "--output", str(tmp_path / "none")]) == 1
    assert "no image or video found" in capsys.readouterr().out


def test_actors_of_ray_write_what_one_process_does(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Ray's local mode, with a single CPU, which the actor takes."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # it would leave a token in the home folder
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # sockets have paths of 107 letters
        ray.init(
            num_cpus=1,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=short,
        )
        try:
            check(arguments, [], tmp_path, lambda: capfd.readouterr().out)
        finally:
            ray.shutdown()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--actors", "0"], "--actors must be at least 1, got 0"),
        (["--cpus-per-actor", "0"], "--cpus-per-actor must be at least 1, got 0"),
        (["--gpus-per-actor", "-1"], "--gpus-per-actor must not be negative, got -1.0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    ],
)
def test_bad_options(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        predict_with_ray.main(["config.py", "a.png", *more])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_mistakes_are_found_before_actors_are_started(
    stand_in: None,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delattr(predict_with_ray, "Actor")
    folder = arguments[1]
    arguments[1] = f"{folder}/1.png"
    one = ["--output", str(tmp_path / "one.png")]
    drawn = [option for option in arguments if option not in ("--json", "--no-pictures")]
    assert predict_with_ray.main([*drawn, *one]) == 2
    assert "--output must be a folder, got " in capsys.readouterr().err
    assert predict_with_ray.main([*arguments, "--classes", "unicorn"]) == 2
    assert "unicorn" in capsys.readouterr().err
    assert predict_with_ray.main(["nowhere.py", *arguments[1:]]) == 2
    assert "nowhere.py does not exist" in capsys.readouterr().err


def test_without_ray_it_says_what_to_install(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert predict_with_ray.main(arguments) == 2
    assert "pip install 'vitadapter[ray]'" in capsys.readouterr().err
