import itertools
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from small_trainer import SmallModel, batches, run, samples
from training_samples import Program, last, load

from vitadapter.engine.checkpoint import AtomicCheckpointer
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.resume import find_checkpoint, resume_training
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.train_loop import AccumulatingTrainer
from vitadapter.engine.trainer import do_train


def trainer_state(cfg: DictConfig) -> dict:
    return torch.load(Path(cfg.train.output_dir, "model_final.pth"), weights_only=True)["trainer"]


@pytest.fixture
def trained(cfg: DictConfig) -> DictConfig:
    """The tiny config after one of two iterations."""
    cfg.train.max_iter = 1
    do_train(cfg)
    cfg.train.max_iter = 2
    return cfg


def test_without_checkpoint_training_starts_anew(cfg: DictConfig) -> None:
    cfg.train.max_iter = 1
    do_train(cfg, resume=True)
    assert trainer_state(cfg)["iteration"] == 0


def test_a_lost_file_names_the_others(trained: DictConfig) -> None:
    Path(trained.train.output_dir, "last_checkpoint").write_text("model_0000007.pth")
    with pytest.raises(SetupError, match=r"model_0000007\.pth.*model_final\.pth"):
        do_train(trained, resume=True)


def test_settings_of_the_config_hold(trained: DictConfig, caplog) -> None:
    apply_overrides(trained, ["optimizer.lr=0.5", "optimizer.weight_decay=0.25"])
    trained.lr_multiplier.end_value = trained.lr_multiplier.start_value
    with caplog.at_level(logging.WARNING, "vitadapter.engine.resume"):
        do_train(trained, resume=True)
    state = trainer_state(trained)
    assert state["iteration"] == 1
    groups = state["optimizer"]["param_groups"]
    assert {group["lr"] for group in groups} == {0.5}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.25}
    messages = [r.getMessage() for r in caplog.records if r.name == "vitadapter.engine.resume"]
    assert len(messages) == 2
    assert "initial_lr=0.001, from here on it is 0.5" in messages[0]
    assert "weight_decay=0.05, from here on it is 0.25" in messages[1]


def test_an_unchanged_config_warns_of_nothing(trained: DictConfig, caplog) -> None:
    with caplog.at_level(logging.WARNING, "vitadapter.engine.resume"):
        do_train(trained, resume=True)
    assert not [r for r in caplog.records if r.name == "vitadapter.engine.resume"]


def make_trainer(build: Callable, model: torch.nn.Module | None = None) -> AccumulatingTrainer:
    model = model or SmallModel()
    return AccumulatingTrainer(model, batches(samples(8), 2), build(model.parameters()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of iterations 0, 1, 2 and the final one, 3, which is tagged as the last."""
    trainer = make_trainer(torch.optim.AdamW)
    checkpointer = AtomicCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
    for name in ("model_0000000", "model_0000001", "model_0000002", "model_final"):
        run(trainer, 1)
        trainer.iter = len(list(tmp_path.glob("*.pth")))
        checkpointer.save(name, iteration=trainer.iter)
    return tmp_path


def changed(path: Path, change: Callable[[dict], object]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def run_code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": Program(path.with_name("executed"))}))


def poisoned(*keys: str | int) -> Callable[[Path], None]:
    def poison(content: dict) -> None:
        for key in keys:
            content = content[key]
        content.view(-1)[0] = float("nan")

    return lambda path: changed(path, poison)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
    "code": run_code,
    "weights": lambda path: torch.save(SmallModel().state_dict(), path),
    "list": lambda path: torch.save([torch.ones(1)], path),
    "detectron2": lambda path: changed(path, lambda c: c.update(trainer={"iteration": 3})),
    "no iteration": lambda path: changed(path, lambda c: c["trainer"].pop("iteration", None)),
    "negative iteration": lambda path: changed(path, lambda c: c["trainer"].update(iteration=-1)),
    "no tensor": lambda path: changed(
        path, lambda c: c["trainer"]["optimizer"]["state"][0].update(exp_avg="text")
    ),
    "best": lambda path: changed(path, lambda c: c.pop("trainer", None)),
    "NaN weight": poisoned("model", "first.bias"),
    "NaN state": poisoned("trainer", "optimizer", "state", 0, "exp_avg_sq"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_last_checkpoint_gives_way_to_the_one_before(
    folder: Path, damage: str, caplog
) -> None:
    shutil.copy(folder / "model_final.pth", folder / "model_best.pth")
    for number, expected in itertools.pairwise(("final", "0000002", "0000001")):
        DAMAGES[damage](folder / f"model_{number}.pth")
        caplog.clear()
        path, content = find_checkpoint(str(folder))
        assert path.name == f"model_{expected}.pth"
        assert content["iteration"] == int(expected)
        (message,) = [record.getMessage() for record in caplog.records]
        assert f"model_{number}.pth" in message
        assert message.endswith(f"training continues from {path} instead")
    for path in folder.glob("model_0*.pth"):
        DAMAGES[damage](path)
    with pytest.raises(ValueError, match="has no checkpoint to resume from: ") as error:
        find_checkpoint(str(folder))
    assert all(path.name in str(error.value) for path in folder.glob("model_[f0]*.pth"))
    assert not (folder / "executed").exists()
    assert "weights_only" not in caplog.text + str(error.value)


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_file_cut_off_anywhere(folder: Path, data: st.DataObject) -> None:
    whole = (folder / "model_0000002.pth").read_bytes()
    size = data.draw(st.integers(0, len(whole) - 1))
    (folder / "model_final.pth").write_bytes(whole[:size])
    assert find_checkpoint(str(folder))[0].name == "model_0000002.pth"


def test_without_a_tag_the_newest_is_taken(folder: Path) -> None:
    """As after a kill between the writing of the first checkpoint and of the tag."""
    (folder / "last_checkpoint").unlink()
    assert find_checkpoint(str(folder))[0].name == "model_final.pth"
    # The run went on after its end.
    shutil.copy(folder / "model_0000002.pth", folder / "model_0000007.pth")
    assert find_checkpoint(str(folder))[0].name == "model_0000007.pth"
    for path in folder.glob("*.pth"):
        path.unlink()
    assert find_checkpoint(str(folder)) is None
    assert find_checkpoint(str(folder / "absent")) is None


@pytest.mark.parametrize(
    "tag", [b"model_0000001.pth", b"\xef\xbb\xbfmodel_0000001.pth\r\n", b"./model_0000001.pth\n\n"]
)
def test_the_tag_is_what_counts(folder: Path, tag: bytes) -> None:
    (folder / "last_checkpoint").write_bytes(tag)
    assert find_checkpoint(str(folder))[0] == folder / "model_0000001.pth"


@pytest.mark.parametrize("name", ["program.pkl", "program.pyth", "model_best.pth"])
def test_whatever_the_tag_names_is_not_run(folder: Path, name: str, caplog) -> None:
    run_code(folder / name)
    (folder / "last_checkpoint").write_text(name)
    assert find_checkpoint(str(folder))[0].name == "model_final.pth"
    assert f"{name} cannot be loaded" in caplog.text
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        (b"../outside.pth", "outside.pth, which is outside of the folder: write one of"),
        (b"sub/../../outside.pth", "outside of the folder"),
        (b"/etc/hostname", "outside of the folder"),
        (b"", r"does not name a checkpoint, but ''.*'model_final\.pth'"),
        (b"model_0000001.pth\nmodel_0000002.pth", "does not name a checkpoint"),
        (b"a\0b", "does not name a checkpoint"),
        (b"\xff\xfe", "is not a file"),
        (b"m" * 5000, "does not name a checkpoint"),
        ("\N{SNOWMAN}".encode() * 80, "is not a file"),
        (b".", "is not a file"),
    ],
)
def test_a_tag_that_names_nothing_of_the_folder(folder: Path, tag: bytes, message: str) -> None:
    shutil.copy(folder / "model_final.pth", folder.parent / "outside.pth")
    (folder / "last_checkpoint").write_bytes(tag)
    with pytest.raises(ValueError, match=message):
        find_checkpoint(str(folder))


def resume(folder: Path, trainer: AccumulatingTrainer) -> int:
    checkpointer = AtomicCheckpointer(trainer.model, str(folder), trainer=trainer)
    return resume_training(checkpointer, trainer, None, *find_checkpoint(str(folder)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda p: torch.optim.SGD(p, lr=0.1),
            r"group 0: another kind of optimizer, with amsgrad, betas, .*eps instead of dampening,",
        ),
        (lambda p: torch.optim.Adagrad(p), "instead of .*lr_decay"),
        (lambda p: torch.optim.AdamW(list(p)[:3]), "group 0: 4 parameters in the file, 3 here"),
        (
            lambda p: torch.optim.AdamW([{"params": [q]} for q in p]),
            r"1 parameter groups in the file, 4 here",
        ),
        (
            lambda p: torch.optim.AdamW(list(p)[::-1]),
            r"exp_avg is \(8, 6\) in the file for a parameter \(2,\)",
        ),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), "amsgrad=True needs a state"),
    ],
)
def test_another_optimizer_is_refused(folder: Path, build: Callable, message: str) -> None:
    with pytest.raises(
        ValueError, match=rf"model_final\.pth cannot be resumed .*{message}.*init_checkpoint="
    ):
        resume(folder, make_trainer(build))


@pytest.mark.parametrize(
    "change",
    [
        lambda trainer: trainer.update(hooks=[1]),
        lambda trainer: trainer["optimizer"]["state"][0].pop("step"),
    ],
)
def test_another_state_of_training_is_refused(folder: Path, change: Callable) -> None:
    changed(folder / "model_final.pth", lambda content: change(content["trainer"]))
    with pytest.raises(ValueError, match=r"model_final\.pth does not have the state of"):
        resume(folder, make_trainer(torch.optim.AdamW))


def test_a_tag_that_is_a_folder(cfg: DictConfig) -> None:
    Path(cfg.train.output_dir, "last_checkpoint").mkdir(parents=True)
    for is_resumed, message in ((False, "already holds checkpoints"), (True, "Is a directory")):
        with pytest.raises(SetupError, match=message):
            do_train(cfg, resume=is_resumed)


def test_all_settings_of_the_config_hold(folder: Path, caplog) -> None:
    trainer = make_trainer(
        lambda p: torch.optim.AdamW(p, eps=1e-5, betas=(0.8, 0.9), maximize=True, foreach=True)
    )
    assert resume(folder, trainer) == 4
    (group,) = trainer.optimizer.param_groups
    assert (group["eps"], group["betas"], group["maximize"]) == (1e-5, (0.8, 0.9), True)
    assert group["foreach"] is True
    messages = [r.getMessage() for r in caplog.records if r.name == "vitadapter.engine.resume"]
    assert len(messages) == 3
    assert "was trained with betas=(0.9, 0.999), from here on it is (0.8, 0.9)" in messages[0]
    assert {float(state["step"]) for state in trainer.optimizer.state.values()} == {4.0}


def test_an_average_that_is_given_up_is_named(cfg: DictConfig, caplog) -> None:
    apply_overrides(cfg, ["train.ema.enabled=True", "train.max_iter=1"])
    do_train(cfg)
    apply_overrides(cfg, ["train.ema.enabled=False", "train.max_iter=2"])
    with caplog.at_level(logging.WARNING, "vitadapter"):
        do_train(cfg, resume=True)
    assert "model_final.pth has averaged weights, which train.ema.enabled=False" in caplog.text


def test_a_run_goes_on_from_the_newest_good_checkpoint(cfg: DictConfig, caplog) -> None:
    apply_overrides(cfg, ["train.checkpointer.period=1"])
    do_train(cfg)
    poisoned("model", "backbone.fpn_output2.bias")(Path(cfg.train.output_dir, "model_final.pth"))
    Path(cfg.train.output_dir, "model_0000002.pth").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "vitadapter"):
        do_train(cfg, resume=True)
    assert "fpn_output2.bias of " in caplog.text
    assert "model_0000002.pth cannot be loaded" in caplog.text
    assert "training continues from" in caplog.text
    assert last(cfg) == "model_final.pth"
    assert load(cfg, "model_final.pth")["iteration"] == 2


def test_a_run_that_was_stopped_before_its_end_gets_its_final_checkpoint(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["train.checkpointer.period=1", "train.ema.enabled=True"])
    do_train(cfg)
    final = Path(cfg.train.output_dir, "model_final.pth")
    expected = load(cfg, final.name)
    # Of a shorter run before this one, say.
    shutil.copy(final.with_name("model_0000000.pth"), final)
    final.with_name("last_checkpoint").write_text("model_0000002.pth")
    cfg.dataloader.evaluator = None
    do_train(cfg, resume=True)
    assert last(cfg) == final.name
    written = load(cfg, final.name)
    assert written["iteration"] == written["trainer"]["iteration"] == 2
    for part in ("model", "model_ema"):
        torch.testing.assert_close(written[part], expected[part], atol=0, rtol=0)
    assert written["trainer"].keys() == expected["trainer"].keys()
    assert written["trainer"]["hooks"]["LRScheduler"] == expected["trainer"]["hooks"]["LRScheduler"]
    assert written["trainer"]["optimizer"]["state"].keys() == set(
        expected["trainer"]["optimizer"]["state"]
    )


def test_other_parameter_groups_are_refused(trained: DictConfig) -> None:
    trained.optimizer.weight_decay = 0.0  # one group instead of two
    with pytest.raises(SetupError, match=r"model_final\.pth cannot be resumed.*init_checkpoint="):
        do_train(trained, resume=True)


def test_another_model_is_refused(trained: DictConfig) -> None:
    trained.model.roi_heads.mask_head.conv_dims = [4, 8]
    with pytest.raises(
        SetupError, match=r"of another model: 3 of .*mask_fcn1\.weight \(4, 8, 3, 3\)"
    ):
        do_train(trained, resume=True)
