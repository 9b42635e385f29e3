"""What a run's checkpoints carry: read back in full, and without running anything."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.data.catalog import Metadata
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vitadapter.checkpoint.reading import read_checkpoint_file
from vitadapter.engine.checkpoint_config import (
    carried_classes,
    class_entries,
    config_from_text,
    config_to_text,
    read_config,
)
from vitadapter.engine.overrides import load_config
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.engine.trainer import do_train
from vitadapter.model_zoo.configs import list_experiments
from vitadapter.modeling.backbone import ViT

EXPERIMENTS = [
    "ADE20K/mask2former_vit_adapter_b_dinov3_frozen_512_80k",
    "ADE20K/semantic_fpn_vit_adapter_l_augreg_lora_80k",
    "ADE20K/upernet_vit_adapter_t_deit_160k",
    "COCO/htcpp_vit_adapter_l_beit_3x",
    "COCO/mask_rcnn_vit_adapter_t_deit_3x",
]


class OwnHead(nn.Module):
    """A class of a user, which others do not have."""


@pytest.fixture
def checkpoint(cfg: DictConfig, tmp_path: Path) -> Path:
    """The final checkpoint of a run, whose data sets are gone."""
    cfg.train.update(max_iter=1)
    cfg.train.checkpointer.period = 1
    cfg.train.ema = {"enabled": True}
    do_train(cfg)
    for path in (cfg.dataset.train.json_file, cfg.dataset.test.json_file):
        Path(path).unlink()
    return tmp_path / "output" / "model_final.pth"


def save(path: Path, **entries: object) -> Path:
    torch.save({"model": {"weight": torch.zeros(1)}, **entries}, path)
    return path


def text_of(**changes: object) -> str:
    """The text of a small config."""
    content = {"train": {"device": "cpu"}, **changes}
    return config_to_text(OmegaConf.create(content, flags={"allow_objects": True}))


def test_every_file_of_a_run_carries_config_and_classes(
    cfg: DictConfig, checkpoint: Path, tmp_path: Path
) -> None:
    files = sorted(checkpoint.parent.glob("*.pth"))
    assert [file.stem for file in files] == ["model_0000000", "model_final"]
    for file in files:
        content = torch.load(file, weights_only=True)
        read = read_checkpoint_file(file)
        assert content["config"] == read["config"]
        assert content["classes"] == read["classes"]
        assert content["classes"]["thing_classes"] == ["class0", "class1"]
        assert content["classes"]["thing_dataset_id_to_contiguous_id"].values()
    left = DetectionCheckpointer(instantiate(cfg.model)).load(str(checkpoint))
    assert left["config"].startswith("model:")
    # Detectron2 reads the text as a file.
    (tmp_path / "config.yaml").write_text(left["config"])
    loaded = LazyConfig.load(str(tmp_path / "config.yaml"))
    assert loaded.model.backbone.out_channels == cfg.model.backbone.out_channels


def test_a_checkpoint_is_all_that_a_prediction_needs(cfg: DictConfig, checkpoint: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    expected = LazyPredictor(cfg, str(checkpoint))
    for source in (checkpoint, str(checkpoint)):
        predictor = LazyPredictor(source, device="cpu")
        assert predictor.metadata.thing_classes == ["class0", "class1"]
        found, wanted = (one(image)["instances"] for one in (predictor, expected))
        assert len(found) == len(wanted) > 0
        assert torch.equal(found.scores, wanted.scores)
    assert expected.metadata.thing_classes == ["class0", "class1"]
    random = LazyPredictor(checkpoint, "", device="cpu")
    names = list(random.model.state_dict())
    assert names == list(expected.model.state_dict())


def test_what_belongs_to_the_run_and_its_machine_is_replaced(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train = {"device": "cuda:3", "output_dir": "/elsewhere", "init_checkpoint": "start.pth"}
    text = text_of(train=train, dataset={"root": "/data"})
    cfg = read_config(save(tmp_path / "model_0000009.pth", config=text))
    assert cfg.train.device == "cpu"
    assert cfg.train.output_dir == f"./output/{tmp_path.name}/model_0000009"
    assert cfg.train.init_checkpoint == str(tmp_path / "model_0000009.pth")
    assert cfg.dataset.root is None


def test_an_older_checkpoint_is_resumed_and_a_newer_one_too(cfg: DictConfig) -> None:
    cfg.train.update(max_iter=1)
    do_train(cfg)
    path = Path(cfg.train.output_dir, "model_final.pth")
    old = {k: v for k, v in torch.load(path).items() if k not in ("config", "classes")}
    torch.save(old, path)
    for max_iter in (2, 3):
        cfg.train.max_iter = max_iter
        do_train(cfg, resume=True)
        content = torch.load(path, weights_only=True)
        assert content["trainer"]["iteration"] == max_iter - 1
        assert config_from_text(content["config"]).train.max_iter == max_iter


def test_a_class_of_the_users_is_left_out_with_a_warning(cfg: DictConfig, caplog) -> None:
    cfg.train.update(max_iter=1)
    cfg.own = L(OwnHead)()
    do_train(cfg)
    content = torch.load(Path(cfg.train.output_dir, "model_final.pth"), weights_only=True)
    assert "config" not in content
    assert content["classes"]["thing_classes"] == ["class0", "class1"]
    warnings = [r.getMessage() for r in caplog.records if "will not carry" in r.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].endswith("test_checkpoint_config.OwnHead")


def _located(node: object) -> object:
    """A part of a config with classes in place of their names, since a class may have several."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node)
    if isinstance(node, list):
        return [_located(child) for child in node]
    if not isinstance(node, dict):
        return node
    items = {key: _located(child) for key, child in node.items()}
    target = items.get("_target_")
    return items | {"_target_": locate(target)} if isinstance(target, str) else items


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_read_as_they_were(name: str) -> None:
    cfg = load_config(name)
    read = config_from_text(config_to_text(cfg))
    for each in (cfg, read):
        each.model.backbone.pop("checkpoint", None)
    with torch.device("meta"):
        models = [instantiate(each.model) for each in (cfg, read)]
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]
    assert str(models[0]) == str(models[1])
    steps = [instantiate(each.dataloader.test.mapper.augmentations) for each in (cfg, read)]
    assert str(steps[0]) == str(steps[1])
    for key in ("train", "dataset", "optimizer.lr", "dataloader.test.mapper.image_format"):
        assert _located(OmegaConf.select(cfg, key)) == _located(OmegaConf.select(read, key))


def test_the_experiments_above_exist() -> None:
    assert set(EXPERIMENTS) <= set(list_experiments())


def test_partials_and_classes_are_values_too() -> None:
    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    cfg = config_from_text(text_of(norm=norm, again=norm, kind=ViT, activation=nn.functional.relu))
    assert (cfg.norm.func, cfg.norm.keywords) == (nn.LayerNorm, {"eps": 1e-6})
    assert cfg.again.keywords == {"eps": 1e-6}
    assert (cfg.kind, cfg.activation) == (ViT, nn.functional.relu)


NAME = "!!python/name:"


@pytest.mark.parametrize(
    "text",
    [
        "a: {_target_: os.system, command: 'true'}",
        "a: {_target_: builtins.eval}",
        "a: {_target_: vitadapter.engine.run_lock.os.system}",
        "a: {_target_: vitadapter.data.image_files.os.system}",
        "a: {_target_: vitadapter.data.image_files.Path.unlink}",
        "a: {_target_: vitadapter.data.folders.prepare.prepare}",
        "a: {_target_: vitadapter.evaluation.tide.analyze_errors}",
        "a: {_target_: detectron2.data.build.load_proposals_into_dataset}",
        "a: {_target_: detectron2.data.get_detection_dataset_dicts}",
        "a: {_target_: detectron2.modeling.mmdet_wrapper.MMDetDetector}",
        "a: {_target_: timm.models.load_checkpoint}",
        "a: {_target_: torch.nn.Module.load_state_dict}",
        "a: {_target_: torch.nn.Linear.__init__.__globals__}",
        "a: {_target_: torch.nn}",
        "a: {_target_: torch.load}",
        "a: {_target_: ''}",
        "a: {_target_: 3}",
        "a: {_target_: {_target_: torch.nn.ReLU}}",
        "a: {_target_: '${b}'}",
        f"a: {NAME}os.system ''",
        f"a: {NAME}vitadapter.data.image_files.os.system ''",
        f"a: !!python/object/apply:functools.partial {{args: [{NAME}os.system ''], kwds: {{}}}}",
    ],
)
def test_names_of_anything_else_are_refused(text: str, tmp_path: Path) -> None:
    path = save(tmp_path / "model_final.pth", config=f"train: {{}}\n{text}\n")
    with pytest.raises(ValueError, match=r"model_final\.pth cannot be used: a config inside a ch"):
        LazyPredictor(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system [ls]", "it is damaged: .*os.system"),
        ("a: !!python/object/new:os.system [ls]", "it is damaged: .*os.system"),
        ("a: !!python/module:os", "it is damaged"),
        ("a: !!python/object/apply:functools.partial {args: [1], kwds: {}}", "a partial must be"),
        ("a: !!python/object/apply:functools.partial [1]", "it is damaged"),
        ("a: !!python/tuple 1", "it is damaged"),
        ("a: {_target_: torch.nn.NoSuchLayer}", "torch.nn.NoSuchLayer, which does not exist here"),
        ("a: {_target_: detectron2.modeling.GeneralizedRCNN, cfg: {}}", "the argument cfg"),
        ("a: '${oc.env:HOME}'", r"refer to its own keys.*\$\{oc.env:HOME\}"),
        ("a: '${oc.create:{_target_: os.system}}'", "refer to its own keys"),
        ("a: '${${b}:x}'", "refer to its own keys"),
        ("a: &b [1]\nc: *b", "references are not allowed"),
        ("a: [", "it is damaged"),
        ("a: 2024-99-99", "cannot be used"),
        ("\0", "it is damaged"),
        ("[1, 2]", "group of keys, got list"),
        ("", "group of keys, got NoneType"),
        ("train: 3", "it must have the group of keys train"),
        ("a: " + "[" * 10_000, "nested too deep"),
        ("a: " + "1" * 5000, "cannot be used"),
        ("a: " + "x" * 2**16, "at most 65536 characters, this one has 65539"),
    ],
)
def test_text_that_is_no_config(text: str, message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "model_final.pth", config=text)
    with pytest.raises(ValueError, match=message):
        read_config(path)


@pytest.mark.parametrize(
    "override",
    [
        "model.backbone._target_=os.system",
        "model.backbone={_target_: os.system}",
        "model.backbone.attention=os.system",
        "model.backbone.attention=exec",
        "model.backbone.attention='os'",
        "model.a=${oc.env:HOME}",
        "model.a=str(3)",
        "model@a=3",
    ],
)
def test_overrides_inside_a_config_set_plain_values(override: str) -> None:
    plain = ["model.inference=null", "model.score=5e-2", "+model.sizes=[1.5, 2]", "~model.b"]
    assert text_of(train={"inference": {"tta": {"overrides": plain}}})
    content = {"train": {"inference": {"tta": {"overrides": [override]}}}}
    with pytest.raises(ValueError, match=r"may only set numbers|own keys"):
        config_from_text(yaml.safe_dump(content))


def test_values_that_are_no_text_are_named() -> None:
    with pytest.raises(ValueError, match="holds plain values and names, got array"):
        config_to_text(OmegaConf.create({"a": np.zeros(2)}, flags={"allow_objects": True}))


@pytest.mark.parametrize("entries", [{}, {"config": {"a": 1}}, {"config": torch.zeros(1)}])
def test_without_a_config_the_message_says_what_to_do(entries: dict, tmp_path: Path) -> None:
    path = save(tmp_path / "bare.pth", **entries)
    with pytest.raises(ValueError, match=r"bare\.pth carries no config: give .* with --weights"):
        LazyPredictor(path)
    with pytest.raises(ValueError, match="do not exist"):
        LazyPredictor(str(tmp_path / "nowhere.pth"))
    with pytest.raises(TypeError, match="a config or a checkpoint, got NoneType"):
        LazyPredictor(None)


def test_classes_that_are_known() -> None:
    numbers = Metadata(name="a", stuff_classes=["0", "1"])
    assert class_entries(numbers) == class_entries(Metadata(name="b")) == {}
    things = Metadata(thing_classes=("a",), thing_dataset_id_to_contiguous_id={np.int64(7): 0})
    assert class_entries(things) == {
        "thing_classes": ["a"],
        "thing_dataset_id_to_contiguous_id": {7: 0},
    }


@pytest.mark.parametrize(
    "classes",
    [
        None,
        {},
        ["cat", "dog"],
        {"cat": 0},
        {"thing_classes": "cat"},
        {"thing_classes": [1]},
        {"thing_classes": ["a"], "colors": [0]},
        {"thing_dataset_id_to_contiguous_id": {1: 0}},
        {"thing_classes": ["a"], "thing_dataset_id_to_contiguous_id": {"1": 0}},
    ],
)
def test_classes_of_other_codes_are_not_taken(classes: object, tmp_path: Path) -> None:
    assert carried_classes(str(save(tmp_path / "a.pth", classes=classes))) is None


def test_weights_without_classes(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    for weights in ("", "zoo://COCO/nothing", "timm://vit", str(tmp_path / "text.pth"), "a.pth"):
        assert carried_classes(weights) is None
    known = save(tmp_path / "known.pth", classes={"thing_classes": ["a"]})
    assert carried_classes(str(known)).thing_classes == ["a"]
