import logging
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.run_checks import SetupError
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
