"""The trackers in their offline modes, read back by their own packages."""

import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import DictConfig
from training_samples import act, metrics_of, raise_error

from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.trainer import do_train


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch):
    """A client of an MLflow folder."""
    package = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    return package.MlflowClient()


@pytest.fixture
def wandb() -> Iterator[ModuleType]:
    """The package, which reads the environment once in a process, as if it were fresh."""
    package = pytest.importorskip("wandb")
    package.teardown()
    yield package
    package.teardown()


@pytest.fixture
def tracked(cfg: DictConfig) -> DictConfig:
    """The tiny config with pictures of its two test images."""
    overrides = ["train.log_period=1", "train.pictures={period: 1, number: 2}"]
    return apply_overrides(cfg, overrides)


def records(path: Path) -> Iterator[object]:
    """The records of a file of wandb, which has the form of a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, record = path.read_bytes(), b""
    at = 7  # behind the file's own header
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:  # the padding of a block
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def only_run(client):
    (experiment,) = (e for e in client.search_experiments() if e.name == "vitadapter")
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_mlflow_continues_its_run(tracked: DictConfig, mlflow, tmp_path: Path) -> None:
    apply_overrides(tracked, ["train.writers=[mlflow]", "train.checkpointer.period=1"])
    act(tracked, raise_error, at=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        do_train(tracked)
    run = only_run(mlflow)
    assert run.info.status == "FAILED"
    assert run.info.run_name == str(tmp_path / "output")
    assert run.data.params["train.max_iter"] == "3"
    assert run.data.params["optimizer.lr"] == "0.001"

    # Back to an older checkpoint, as after a crash: what is repeated is not written again.
    folder = Path(tracked.train.output_dir)
    (folder / "last_checkpoint").write_text("model_0000000.pth")
    (folder / "model_0000001.pth").unlink()
    tracked.dataloader.train.mapper.at = -1
    tracked.train.max_iter = 4
    do_train(tracked, resume=True)
    run = only_run(mlflow)
    assert run.info.status == "FINISHED"
    losses = mlflow.get_metric_history(run.info.run_id, "total_loss")
    assert sorted(metric.step for metric in losses) == [0, 1, 2, 3]
    rows = {row["iteration"]: row for row in metrics_of(tracked)}
    assert {m.step: m.value for m in losses}[3] == rows[3]["total_loss"]
    (ap,) = mlflow.get_metric_history(run.info.run_id, "bbox/AP")
    assert (ap.step, ap.value) == (4, rows[4]["bbox/AP"])
    files = [f.path for f in mlflow.list_artifacts(run.info.run_id, "images")]
    assert len([name for name in files if name.endswith(".png")]) == 2


def test_wandb_keeps_its_run_in_the_output_folder(
    tracked: DictConfig, wandb: ModuleType, monkeypatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    apply_overrides(tracked, ["train.writers=[tensorboard, wandb]", "train.max_iter=1"])
    do_train(tracked)
    tracked.train.max_iter = 2
    do_train(tracked, resume=True)

    folder = Path(tracked.train.output_dir)
    assert list(folder.glob("events.out.tfevents.*"))
    starts, rows, codes = [], [], []
    files = folder.glob("wandb/offline-run-*/*.wandb")
    for record in itertools.chain(*map(records, sorted(files, key=lambda p: p.stat().st_mtime))):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            starts.append(record.run)
        elif kind == "exit":
            codes.append(record.exit.exit_code)
        elif kind == "history":
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): i.value_json for i in items})
    assert len({run.run_id for run in starts}) == 1
    assert {run.display_name for run in starts} == {str(folder)}
    assert {run.project for run in starts} == {"vitadapter"}
    values = {u.key: json.loads(u.value_json) for u in starts[0].config.update}
    assert values["train"]["max_iter"] == 1
    assert codes == [0, 0]
    steps = [json.loads(row["_step"]) for row in rows if "total_loss" in row]
    assert steps == [0, 1]
    # In no particular order within a row.
    shown = [sorted(name for name in row if name.endswith("/path")) for row in rows]
    assert [names for names in shown if names] == 2 * [
        ["predictions/0_000/path", "predictions/1_001/path"]
    ]


def test_wandb_without_an_account(
    cfg: DictConfig, wandb: ModuleType, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    apply_overrides(cfg, ["train.writers=[wandb]"])
    with pytest.raises(SetupError, match=r"wandb cannot start a run.*WANDB_MODE=offline"):
        do_train(cfg)
    folder = Path(cfg.train.output_dir)
    assert not (folder / "log.txt").exists()
    assert not (folder / "metrics.json").exists()
