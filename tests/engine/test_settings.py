import math
from pathlib import Path
from typing import Annotated, Literal

import detectron2
import pytest
import torch
from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

from vitadapter.engine.inference import InferenceModel
from vitadapter.engine.overrides import apply_overrides, load_config
from vitadapter.engine.settings import (
    NotNegativeNumber,
    PositiveInt,
    Rule,
    broken_rule,
    check_settings,
    fill_defaults,
    settings_group,
)
from vitadapter.model_zoo import get_config

DETECTRON2_TRAIN = Path(detectron2.__file__).parent / "model_zoo/configs/common/train.py"


@pytest.fixture
def ours() -> DictConfig:
    return get_config("common/train.py")


@pytest.fixture
def detectron2s() -> DictConfig:
    return LazyConfig.load(str(DETECTRON2_TRAIN))


def keys(node: DictConfig, prefix: str = "") -> set[str]:
    """All dotted keys, references and null ones too."""
    found = set()
    for key in node:
        found.add(f"{prefix}{key}")
        if isinstance(node[key], DictConfig):
            found |= keys(node[key], f"{prefix}{key}.")
    return found


def test_detectron2s_own_config_gets_what_it_lacks(
    ours: DictConfig, detectron2s: DictConfig
) -> None:
    own = OmegaConf.to_container(detectron2s.train)
    assert keys(detectron2s) < keys(ours)
    check_settings(detectron2s)
    inside = {key for key in keys(ours) if key.startswith("train.inference.")}
    assert keys(detectron2s) == keys(ours) - inside
    for key, value in own.items():
        if isinstance(value, dict):  # its own values stay
            assert value.items() <= detectron2s.train[key].items()
        else:
            assert detectron2s.train[key] == value
    added = {"seed": -1, "accumulate_steps": 1, "init_allow_partial": False, "inference": None}
    assert added.items() <= detectron2s.train.items()
    assert detectron2s.train.amp == {"enabled": False, "dtype": "float16", "init_scale": 512.0}
    assert detectron2s.train.ema == {"enabled": False, "decay": 0.9999, "ramp_iters": 2000}
    assert detectron2s.train.best_checkpoint == {"metric": None, "mode": "max", "patience": None}


def test_the_command_line_knows_what_detectron2s_own_config_lacks(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(DETECTRON2_TRAIN.read_text())
    overrides = ["train.ema.enabled=True", "train.best_checkpoint.metric=segm/AP", "train.seed=3"]
    train = load_config(str(tmp_path / "c.py"), overrides).train
    assert (train.ema.enabled, train.ema.decay, train.seed) == (True, 0.9999, 3)
    assert train.best_checkpoint.metric == "segm/AP"


def test_ours_survives_a_yaml_file(ours: DictConfig, tmp_path: Path) -> None:
    assert ours.train.inference._target_ is InferenceModel
    LazyConfig.save(ours, str(tmp_path / "c.yaml"))
    loaded = LazyConfig.load(str(tmp_path / "c.yaml"))
    assert keys(loaded) == keys(ours)
    check_settings(loaded)
    del ours.train.inference, loaded.train.inference  # whose class is a name in the file
    assert loaded == ours


def test_checkpoints_are_kept_where_a_config_does_not_say_how_many(ours: DictConfig) -> None:
    del ours.train.checkpointer.max_to_keep
    check_settings(ours)
    assert ours.train.checkpointer.max_to_keep is None


def test_null_switches_a_group_off(ours: DictConfig) -> None:
    apply_overrides(ours, ["train.ema.enabled=True", "train.best_checkpoint.metric=bbox/AP"])
    apply_overrides(ours, ["train.ema=null", "train.best_checkpoint=null", "train.inference=null"])
    check_settings(ours)
    assert ours.train.ema.enabled is False
    assert ours.train.best_checkpoint.metric is None
    assert ours.train.inference is None


def test_references(ours: DictConfig) -> None:
    ours.average, ours.epochs, ours.train.max_iter = {"decay": 0.5}, 3, "${epochs}"
    ours.train.ema = "${average}"
    check_settings(ours)
    assert (ours.train.max_iter, ours.train.ema.decay, ours.train.ema.enabled) == (3, 0.5, False)
    ours.train.seed = "${nothing}"
    fill_defaults(ours)  # leaves it
    with pytest.raises(ValueError, match=r"'nothing' not found"):
        check_settings(ours)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.max_itr", 3, r"train\.max_itr is not a setting.* nearest is train\.max_iter"),
        ("train.ema.deacy", 0.5, r"train\.ema\.deacy is not .* nearest is train\.ema\.decay"),
        ("train.ddp.bucket_cap", 5, r"train\.ddp must be a group of arguments of Distributed.*got"),
        ("train.ddp", None, r"train\.ddp must be a group of arguments .*got None"),
        ("train.amp", None, r"train\.amp must be a group of keys \(enabled, .*got None"),
        ("train.ema", True, r"train\.ema must be a group of keys .* or null, got True"),
        ("train.ema.decay", float("nan"), r"train\.ema\.decay must be .*got nan"),
        ("train", 3, r"train must be a group of keys \(output_dir, .*got 3"),
    ],
)
def test_refused(ours: DictConfig, key: str, value: object, message: str) -> None:
    OmegaConf.update(ours, key, value, force_add=True)
    with pytest.raises(ValueError, match=message):
        check_settings(ours)


@pytest.mark.parametrize("key", ["max_iter", "eval_period", "checkpointer", "checkpointer.period"])
def test_what_has_no_default_is_required(ours: DictConfig, key: str) -> None:
    apply_overrides(ours, [f"~train.{key}"])
    with pytest.raises(ValueError, match=rf"train\.{key} must be .*, but the config has no such"):
        check_settings(ours)


def test_other_arguments_of_distributed_training(ours: DictConfig) -> None:
    apply_overrides(ours, ["+train.ddp.gradient_as_bucket_view=True"])
    check_settings(ours)


def test_overrides_are_checked_like_config_files(ours: DictConfig) -> None:
    with pytest.raises(ValueError, match=r"train\.max_iter must be a positive integer, got 0"):
        apply_overrides(ours, ["train.max_iter=0"])
    with pytest.raises(ValueError, match=r"train\.ema\.decay must be a number .* got 2"):
        apply_overrides(ours, ["train.ema={enabled: True, decay: 2}"])
    assert ours == get_config("common/train.py")


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "words"),
    [
        (bool, [True], [1, None], "True or False"),
        (int, [2], [True, 2.0, "2"], "an integer"),
        (float, [2, 0.5], [True, "2"], "a number"),
        (str | None, ["a", None], [2], "text or null"),
        (int | Literal["auto"], [2, "auto"], ["other", 0.5], "an integer or auto"),
        (PositiveInt, [1], [0, True, "1", 1.0], "a positive integer"),
        (PositiveInt | None, [None, 3], [-1], "a positive integer or null"),
        (NotNegativeNumber, [0, 1.5], [-1, math.inf, math.nan, "0"], "0 or a positive number"),
        (Annotated[int, "pixels"], [2], ["2"], "an integer"),
        (Annotated[list, Rule("empty", lambda v: not v)], [[]], [[1]], "empty"),
        (torch.nn.Module, [2, None], [], ""),
        (int | torch.nn.Module, ["a"], [], ""),
        ("int", ["a"], [], ""),
    ],
)
def test_rules(annotation: object, good: list, bad: list, words: str) -> None:
    assert [broken_rule(annotation, value) for value in good] == [None] * len(good)
    assert [broken_rule(annotation, value) for value in bad] == [words] * len(bad)


def test_groups() -> None:
    assert settings_group("train.ema").__name__ == "EMASettings"
    assert settings_group("train").__name__ == "TrainSettings"
    for key in ("", "model", "train.max_iter", "train.ddp", "train.nothing.ema", "model.ema"):
        assert settings_group(key) is None
