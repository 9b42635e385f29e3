from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig, OmegaConf

from vitadapter.engine.overrides import apply_overrides, load_config


def takes_anything(known: int, **others: int) -> None:
    """Its signature names one argument and swallows the rest."""


@pytest.fixture
def cfg() -> DictConfig:
    content = {
        "train": {"max_iter": 10, "output_dir": "./output", "checkpointer": {"period": 5}},
        "dataset": {"num_classes": 80, "train": {"json_file": None}},
        "model": L(torch.nn.Conv2d)(
            in_channels=3, out_channels="${dataset.num_classes}", kernel_size=3
        ),
        "layers": [L(torch.nn.ReLU)(), L(torch.nn.Linear)(in_features=2, out_features=3)],
        "alias": "${train.checkpointer}",
        "loose": L(takes_anything)(known=1),
        "named": {"_target_": "torch.nn.Conv2d", "in_channels": 1},
        "missing": "???",
        "sizes": [1, 2, 3],
    }
    return DictConfig(content, flags={"allow_objects": True})


def test_existing_keys_of_every_kind(cfg: DictConfig) -> None:
    overrides = [
        "train.max_iter=20",
        "dataset.num_classes=7",
        "dataset.train.json_file=/data/a.json",
        "layers.1.out_features=9",
        "sizes=[4,5]",
        "missing=3",
        "train.checkpointer={period:6}",
    ]
    assert apply_overrides(cfg, overrides) is cfg
    assert cfg.train.max_iter == 20
    assert cfg.dataset.train.json_file == "/data/a.json"
    assert instantiate(cfg.model).weight.shape == (7, 3, 3, 3)
    assert instantiate(cfg.layers[1]).out_features == 9
    assert list(cfg.sizes) == [4, 5]
    assert cfg.missing == 3
    assert cfg.train.checkpointer == {"period": 6}


def test_values_mean_the_same_as_in_detectron2(cfg: DictConfig) -> None:
    values = ["null", "3", "1e-4", "true", "text", "'quoted text'", "[1,a]", "{b:2}", "''"]
    values += ["${dataset.num_classes}", "/a/b-c_d.json"]
    for value in values:
        override = f"dataset.train.json_file={value}"
        expected = LazyConfig.apply_overrides(cfg.copy(), [override]).dataset.train.json_file
        assert apply_overrides(cfg.copy(), [override]).dataset.train.json_file == expected, value


@pytest.mark.parametrize(
    "value", ["/a/ü.json", "/a (copy)/b.json", "w.pth?matching_heuristics=True", "it's", "a=b=c"]
)
def test_paths_beyond_hydras_grammar_are_taken_as_they_stand(cfg: DictConfig, value: str) -> None:
    assert apply_overrides(cfg, [f"train.output_dir={value}"]).train.output_dir == value


@pytest.mark.parametrize("key", ["model.stride", "named.stride"])
def test_an_argument_of_the_lazy_call_may_be_new(cfg: DictConfig, key: str) -> None:
    parent = key.partition(".")[0]
    assert apply_overrides(cfg, [f"{key}=2"])[parent].stride == 2


def test_keys_behind_an_interpolation_change_what_it_refers_to(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["alias.period=7"])
    assert cfg.train.checkpointer.period == 7
    apply_overrides(cfg, ["alias={period:8}"])
    assert cfg.train.checkpointer.period == 8
    apply_overrides(cfg, ["train.checkpointer.period=9"])
    assert cfg.alias.period == 9


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("train.max_itr=3", r"near keys: train\.max_iter"),
        ("trian.max_iter=3", r"near keys: train\.max_iter"),
        ("max_iter=3", r"near keys: train\.max_iter"),
        ("model.strid=2", r"near keys: .*model\.kernel_size"),
        ("dataset.train.json=a", r"near keys: dataset\.train\.json_file"),
        ("train.checkpointer={periodd:3}", r"'train\.checkpointer\.periodd'.*period"),
        ("alias.periodd=3", "'alias.periodd'"),
        ("loose.other=3", r"near keys: loose"),
        ("layers.2.in_features=3", r"layers\.1\.in_features"),
        ("sizes.first=3", r"sizes\.0"),
        ("~train.max_itr", r"near keys: train\.max_iter"),
        ("~trian", "near keys: train"),
        ("zzzzzz=1", "top-level keys: train, dataset"),
    ],
)
def test_unknown_keys_are_refused(cfg: DictConfig, override: str, near: str) -> None:
    before = cfg.copy()
    with pytest.raises(ValueError, match=near):
        apply_overrides(cfg, [override])
    assert cfg == before


@pytest.mark.parametrize(
    "override", ["foo", "=3", "", "train.max_iter", "sizes=[1,2", "train.max_iter=1,2", "a@b=3"]
)
def test_malformed_overrides_are_refused(cfg: DictConfig, override: str) -> None:
    with pytest.raises(ValueError, match=r"key=value|key=\[1,2\]"):
        apply_overrides(cfg, [override])


def test_a_value_with_a_comma_is_quoted(cfg: DictConfig) -> None:
    with pytest.raises(ValueError, match=r"key=\[1,2\].*\"train\.output_dir='/a,b'\""):
        apply_overrides(cfg, ["train.output_dir=/a,b"])
    assert apply_overrides(cfg, ["train.output_dir='/a,b'"]).train.output_dir == "/a,b"


def test_a_value_holds_no_keys(cfg: DictConfig) -> None:
    with pytest.raises(ValueError, match="holds no keys"):
        apply_overrides(cfg, ["train.max_iter.period=3"])


def test_adding(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["+loose.other=3", "++new.deep.key=4", "+train.max_iter=5"])
    assert (cfg.loose.other, cfg.new.deep.key, cfg.train.max_iter) == (3, 4, 5)
    with pytest.raises(ValueError, match=r"\+sizes\.9=1 cannot be added"):
        apply_overrides(cfg, ["+sizes.9=1"])


def test_deleting(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["~model.kernel_size", "~layers.0", "~train.max_iter=10"])
    assert "kernel_size" not in cfg.model
    assert len(cfg.layers) == 1
    assert "max_iter" not in cfg.train
    with pytest.raises(ValueError, match=r"does not match the value 80"):
        apply_overrides(cfg, ["~dataset.num_classes=3"])


def test_a_key_that_older_configs_lack() -> None:
    cfg = OmegaConf.create({"train": {"max_iter": 5}, "model": {}})
    assert apply_overrides(cfg, ["train.init_allow_partial=True"]).train.init_allow_partial is True
    apply_overrides(cfg, ["train.accumulate_steps=2", "train.ema={enabled: True}"])
    assert (cfg.train.accumulate_steps, cfg.train.ema.enabled) == (2, True)
    with pytest.raises(ValueError, match=r"no key 'model\.init_allow_partial'"):
        apply_overrides(cfg, ["model.init_allow_partial=True"])


def builds(
    part: torch.nn.Module,
    optional: torch.nn.Module | None = None,
    norm: str | Callable[[int], torch.nn.Module] = "",
    number: float = 0.5,
    count: int = 1,
    switch: bool = False,
    name: str | None = None,
    sizes: list[int] | None = None,
    level: bool | Literal["layers"] = False,
) -> None:
    """Parameters of each kind."""


@pytest.fixture
def built() -> DictConfig:
    part = L(torch.nn.ReLU)(inplace=False)
    owner = L(builds)(part=part.copy(), optional=part.copy(), norm=part.copy(), level=False)
    content = {"owner": owner, "group": {"a": 1}, "train": {"ema": {"enabled": False}}}
    content["other"] = part.copy()
    content["listed"] = [part.copy()]
    content["alias"] = "${other}"
    return DictConfig(content, flags={"allow_objects": True})


@pytest.mark.parametrize(
    "override",
    [
        "owner.optional=null",
        "owner.norm=GN",
        "owner.part=${other}",
        "owner.part={inplace: True}",
        "owner.number=2",
        "owner.number=2.5",
        "owner.number=${owner.count}",
        "owner.count=2",
        "owner.switch=True",
        "owner.name=null",
        "owner.name=text",
        "owner.sizes=5",
        "owner.level=True",
        "owner.level=layers",
        "train.ema=null",
        "alias=null",
    ],
)
def test_what_a_part_takes(built: DictConfig, override: str) -> None:
    apply_overrides(built, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("owner.part=null", r"owner\.part=null would put .*owner\.part\.inplace"),
        ("owner.part=relu", r"owner\.part=relu would put"),
        ("owner.part=[1]", r"owner\.part=\[1\] would put"),
        ("owner.optional=5", r"owner\.optional=5 would put"),
        ("owner.optional=relu", r"owner\.optional=relu would put"),
        ("owner.norm=null", r"owner\.norm=null would put"),
        ("owner={part: null}", r"owner\.part=null would put"),
        ("other=null", "other=null would put"),
        ("listed.0=null", r"listed\.0=null would put .*~listed\.0"),
        ("group=3", r"group=3 would put .*group\.a"),
        ("train.ema=3", r"train\.ema must be a group of keys .*decay.* or null, got 3"),
        ("owner.number=x", r"owner\.number must be a number, got 'x'"),
        ("owner.number=True", r"owner\.number must be a number, got True"),
        ("owner.number=null", r"owner\.number must be a number, got None"),
        ("owner.count=2.0", r"owner\.count must be an integer, got 2\.0"),
        ("owner.switch=maybe", r"owner\.switch must be True or False, got 'maybe'"),
        ("owner.switch=0", r"owner\.switch must be True or False, got 0"),
        ("owner.level=all", r"owner\.level must be True or False or layers, got 'all'"),
        ("owner.name=5", r"owner\.name must be text or null, got 5"),
        ("owner.name=[a]", r"owner\.name must be text or null, got \['a'\]"),
    ],
)
def test_what_a_part_does_not_take(built: DictConfig, override: str, message: str) -> None:
    before = built.copy()
    with pytest.raises(ValueError, match=message):
        apply_overrides(built, [override])
    assert built == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "a: 1", "has to be a python or yaml file"),
        ("c.yaml", "a: [1", r"c\.yaml cannot be read: .*line 1"),
        ("c.yaml", "- 1", r"c\.yaml must define keys"),
        ("c.py", "x = (", r"c\.py cannot be read: .*line 1"),
    ],
)
def test_files_that_are_no_configs(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(str(path), [])


def test_config_files(tmp_path: Path) -> None:
    for name, text in (("c.yaml", "a: {b: 1}"), ("c.py", "a = dict(b=1)")):
        (tmp_path / name).write_text(text)
        assert load_config(str(tmp_path / name), ["a.b=2"]).a.b == 2
    (tmp_path / "c.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_config(str(tmp_path / "c.py"), [])
