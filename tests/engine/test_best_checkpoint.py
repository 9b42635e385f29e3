import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.checkpoint import FileSystemWriter
from torch.nn.parallel import DistributedDataParallel
from training_samples import act, last, load, metrics_of, raise_error

from vitadapter.checkpoint.reading import read_checkpoint_file
from vitadapter.engine import parallel as parallel_module
from vitadapter.engine import trainer as trainer_module
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.trainer import do_eval_only, do_train
from vitadapter.engine.writers import WriterHook


@pytest.fixture
def keep(cfg: DictConfig) -> DictConfig:
    """The tiny config with an evaluation in each of five iterations."""
    return apply_overrides(
        cfg,
        [
            "train.best_checkpoint.metric=segm/AP",
            "train.eval_period=1",
            "train.max_iter=5",
            "train.log_period=20",
        ],
    )


@pytest.fixture
def evaluations(monkeypatch) -> Callable[..., list[dict]]:
    """Makes evaluations give these APs; returns a list of the weights that were evaluated."""

    def set_values(*values: float) -> list[dict]:
        left: Iterator[float] = iter(values)
        weights = []

        def evaluate(model: torch.nn.Module, *arguments: object) -> dict:
            weights.append({k: v.clone() for k, v in model.model.state_dict().items()})
            return {"segm": {"AP": next(left), "AP50": 1.0, "AP-class0": 2.0}}

        monkeypatch.setattr(trainer_module, "inference_on_dataset", evaluate)
        return weights

    return set_values


def best(cfg: DictConfig) -> dict:
    return load(cfg, "model_best.pth")


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("mode", "values", "at"),
    [
        ("max", (3.0, 7.0, 7.0, 5.0, 6.0), 1),
        ("max", (3.0, float("nan"), 2.0, 1.0, 9.0), 4),
        ("min", (3.0, 7.0, 2.0, 5.0, 6.0), 2),
    ],
)
@pytest.mark.parametrize("averaged", [False, True])
def test_the_best_evaluated_weights_are_kept(
    keep: DictConfig,
    evaluations: Callable,
    mode: str,
    values: tuple[float, ...],
    at: int,
    averaged: bool,
) -> None:
    keep.train.best_checkpoint.mode = mode
    keep.train.ema.enabled = averaged
    weights = evaluations(*values)
    do_train(keep)
    state = best(keep)
    best_value = {"metric": "segm/AP", "mode": mode, "value": values[at], "completed": at + 1}
    assert state["best"] == best_value
    assert len(weights) == 5
    assert same(state["model"], weights[at])
    assert set(state) == {"model", "iteration", "best", "config", "classes", "seed"}
    assert last(keep) == "model_final.pth"


def test_the_file_can_be_evaluated(keep: DictConfig, tmp_path: Path) -> None:
    keep.train.max_iter = 1
    torch.manual_seed(0)
    trained = do_train(keep)
    assert best(keep)["best"]["value"] == trained["segm"]["AP"]
    keep.train.init_checkpoint = f"{keep.train.output_dir}/model_best.pth"
    keep.train.output_dir = str(tmp_path / "evaluated")
    assert do_eval_only(keep)["segm"]["AP"] == trained["segm"]["AP"]


@pytest.mark.parametrize("averaged", [False, True])
def test_a_distributed_model_keeps_its_names(
    keep: DictConfig, evaluations: Callable, averaged: bool, monkeypatch
) -> None:
    apply_overrides(keep, ["train.max_iter=1", f"train.ema.enabled={averaged}"])
    evaluations(3.0)

    def wrap(model: torch.nn.Module, **options: object) -> DistributedDataParallel:
        return DistributedDataParallel(model)

    monkeypatch.setattr(parallel_module, "create_ddp_model", wrap)
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        do_train(keep)
    finally:
        destroy_process_group()
    assert best(keep)["model"].keys() == instantiate(keep.model).state_dict().keys()


def test_a_resumed_run_knows_the_best(keep: DictConfig, evaluations: Callable, caplog) -> None:
    evaluations(3.0, 7.0)
    act(keep, raise_error, at=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        do_train(keep)
    assert best(keep)["best"]["value"] == 7.0
    keep.dataloader.train.mapper.at = -1
    evaluations(6.0, 6.5, 5.0)
    do_train(keep, resume=True)
    assert best(keep)["best"]["value"] == 7.0
    keep.train.max_iter = 7
    evaluations(8.0, 2.0)
    do_train(keep, resume=True)
    assert best(keep)["best"]["value"] == 8.0
    # Another metric begins anew.
    apply_overrides(keep, ["train.max_iter=8", "train.best_checkpoint.metric=segm/AP50"])
    evaluations(2.0)
    with caplog.at_level(logging.WARNING, "vitadapter"):
        do_train(keep, resume=True)
    assert "best by segm/AP: it is replaced" in caplog.text
    expected = {"metric": "segm/AP50", "mode": "max", "value": 1.0, "completed": 8}
    assert best(keep)["best"] == expected


@pytest.mark.parametrize("content", [b"", b"text"])
def test_a_damaged_best_checkpoint_is_replaced(
    keep: DictConfig, evaluations: Callable, content: bytes, caplog
) -> None:
    keep.train.max_iter = 1
    evaluations(3.0)
    do_train(keep)
    Path(keep.train.output_dir, "model_best.pth").write_bytes(content)
    keep.train.max_iter = 2
    evaluations(2.0)
    with caplog.at_level(logging.WARNING, "vitadapter"):
        do_train(keep, resume=True)
    assert "model_best.pth cannot be loaded" in caplog.text
    assert best(keep)["best"]["value"] == 2.0


def test_stopped_in_the_last_iteration(keep: DictConfig, evaluations: Callable) -> None:
    keep.train.max_iter = 3
    evaluations(3.0, 2.0)
    act(keep, raise_error, at=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        do_train(keep)
    assert best(keep)["best"]["value"] == 3.0


@pytest.mark.parametrize("period", [1, 0])
def test_an_unknown_metric_stops_at_the_first_evaluation(
    keep: DictConfig, evaluations: Callable, period: int
) -> None:
    apply_overrides(keep, ["train.best_checkpoint.metric=segm/mAP", f"train.eval_period={period}"])
    keep.train.log_period = 1  # Detectron2's printer divides by 0 if it writes twice
    evaluations(3.0)
    with pytest.raises(
        ValueError,
        match=r"segm/mAP is not among .*: segm/AP, segm/AP50\. .*--resume .*metric=segm/AP$",
    ):
        do_train(keep)
    # The work of the run is kept.
    assert load(keep, last(keep))["trainer"]["iteration"] == (0 if period else 4)


def test_nothing_detected_at_first(keep: DictConfig, monkeypatch) -> None:
    """COCO's evaluator then has boxes only, all NaN; masks may come."""
    nothing = {"bbox": {"AP": float("nan"), "AP50": float("nan")}}
    left = iter([nothing, nothing, {"bbox": {"AP": 2.0}, "segm": {"AP": 1.0}}, nothing, nothing])
    monkeypatch.setattr(trainer_module, "inference_on_dataset", lambda *arguments: next(left))
    do_train(keep)
    assert best(keep)["best"]["value"] == 1.0
    assert best(keep)["iteration"] == 2


def test_needs_an_evaluator(keep: DictConfig) -> None:
    keep.dataloader.evaluator = None
    with pytest.raises(SetupError, match=r"metric=segm/AP needs dataloader\.evaluator"):
        do_train(keep)


def test_a_lost_checkpoint_is_not_replaced_by_the_best(
    keep: DictConfig, evaluations: Callable
) -> None:
    keep.train.max_iter = 1
    evaluations(1.0)
    do_train(keep)
    Path(keep.train.output_dir, "last_checkpoint").write_text("model_0000007.pth")
    with pytest.raises(SetupError, match=r"write one of \['model_final\.pth'\] into it"):
        do_train(keep, resume=True)


def patient(cfg: DictConfig, patience: int) -> DictConfig:
    """With more iterations than will be trained."""
    return apply_overrides(cfg, [f"train.best_checkpoint.patience={patience}", "train.max_iter=9"])


def test_training_ends_when_evaluations_no_longer_improve(
    keep: DictConfig, evaluations: Callable, caplog
) -> None:
    patient(keep, 2)
    keep.train.log_period = 1
    weights = evaluations(3.0, 7.0, float("nan"), 7.0)
    with caplog.at_level(logging.INFO, "vitadapter"):
        results = do_train(keep)
    # No fifth evaluation, which would have raised StopIteration.
    assert len(weights) == 4
    assert results["segm"]["AP"] == 7.0
    assert "after 4 of 9 iterations" in caplog.text
    assert "train.best_checkpoint.patience=2 (7 is still the best)" in caplog.text
    assert last(keep) == "model_final.pth"
    final = load(keep, "model_final.pth")
    assert final["trainer"]["iteration"] == 3
    assert same(final["model"], weights[3])
    assert [row["iteration"] for row in metrics_of(keep) if "segm/AP" in row] == [0, 1, 2, 3]

    # The run counts as finished.
    evaluations(5.0)
    assert do_train(keep, resume=True)["segm"]["AP"] == 5.0
    assert load(keep, "model_final.pth")["trainer"]["iteration"] == 3
    # With more patience, it goes on and counts from the same best.
    patient(keep, 4)
    evaluations(6.0, 5.0)
    do_train(keep, resume=True)
    assert load(keep, "model_final.pth")["trainer"]["iteration"] == 5


def test_a_stopped_run_keeps_the_count(keep: DictConfig, evaluations: Callable) -> None:
    patient(keep, 3)
    evaluations(7.0, 3.0, 3.0)
    act(keep, raise_error, at=3)
    with pytest.raises(RuntimeError, match="out of memory"):
        do_train(keep)
    keep.dataloader.train.mapper.at = -1
    evaluations(5.0)
    do_train(keep, resume=True)
    assert load(keep, "model_final.pth")["trainer"]["iteration"] == 3
    assert best(keep)["best"]["value"] == 7.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.best_checkpoint.patience=0"], r"patience must be a positive integer or null"),
        (["train.best_checkpoint.patience=-2"], r"must be a positive integer or null, got -2"),
        (
            ["train.best_checkpoint.patience=2", "train.best_checkpoint.metric=null"],
            r"patience=2 needs a metric.*train\.best_checkpoint\.metric=",
        ),
        (
            ["train.best_checkpoint.patience=2", "train.eval_period=0"],
            r"eval_period=0 evaluates only at the end",
        ),
    ],
)
def test_patience_that_cannot_work(keep: DictConfig, overrides: list[str], message: str) -> None:
    for override in overrides:
        key, _, value = override.rpartition("=")
        OmegaConf.update(keep, key, yaml.safe_load(value))
    with pytest.raises(SetupError, match=message):
        do_train(keep)


def test_a_best_that_the_disk_does_not_take_is_not_the_one_to_beat(
    keep: DictConfig, evaluations, monkeypatch, caplog
) -> None:
    keep.train.parallel = "fsdp2"  # so that weights are written in the background
    evaluations(1.0, 5.0, 3.0, 2.0, 2.0)
    write, begun = FileSystemWriter.write_data, []

    def fail_at_second(self, *arguments):
        begun.append(self)
        if len(begun) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *arguments)

    monkeypatch.setattr(FileSystemWriter, "write_data", fail_at_second)
    do_train(keep)
    assert "the best weights cannot be written, and training goes on" in caplog.text
    found = read_checkpoint_file(Path(keep.train.output_dir, "model_best.dcp"))["best"]
    assert (found["value"], found["completed"]) == (3.0, 3)


def test_a_best_is_on_the_disk_before_its_iteration_counts_as_done(
    keep: DictConfig, evaluations, monkeypatch
) -> None:
    keep.train.parallel = "fsdp2"
    evaluations(1.0, 2.0, 3.0, 4.0, 5.0)
    folder, after_step = Path(keep.train.output_dir), WriterHook.after_step
    bests = []

    def look(self) -> None:
        bests.append(read_checkpoint_file(folder / "model_best.dcp", is_mapped=True)["best"])
        after_step(self)

    monkeypatch.setattr(WriterHook, "after_step", look)
    do_train(keep)
    # The last iteration is evaluated after its row.
    assert [found["completed"] for found in bests] == [1, 2, 3, 4, 4]
