"""`dataset.root` in configs, on command lines, and in a script that does not know it."""

import logging
from pathlib import Path

import folder_formats as formats
import pytest
from detectron2.config import LazyConfig, instantiate
from folder_formats import Splits
from folder_samples import TINY_CONFIG, load, tiny_config
from omegaconf import OmegaConf

from vitadapter.commands.data import check, convert
from vitadapter.data.folders import prepare, resolve_root
from vitadapter.data.folders.prepare import write_prepared
from vitadapter.engine.overrides import load_config
from vitadapter.model_zoo import get_config


@pytest.fixture
def yolo(root: Path, splits: Splits) -> Path:
    formats.write_yolo(root, splits, polygons=True)
    return root


def test_load_config_reads_the_folder(yolo: Path) -> None:
    cfg = load_config(str(TINY_CONFIG), [f"dataset.root={yolo}"])
    assert load(cfg) == load(tiny_config(yolo))


def test_shows_the_table_before_logging_is_set_up(
    yolo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = logging.getLogger("vitadapter")
    monkeypatch.setattr(package, "handlers", [])
    monkeypatch.setattr(package, "propagate", False)
    level = package.level
    tiny_config(yolo)
    assert "| images read " in capsys.readouterr().out
    assert (package.handlers, package.level) == ([], level)


def test_saved_config_names_the_files(yolo: Path, tmp_path: Path) -> None:
    cfg = tiny_config(yolo)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    assert load(load_config(str(tmp_path / "config.yaml"), [])) == load(cfg)


def test_relative_folder(
    root: Path, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats.write_roboflow_coco(root, splits)
    monkeypatch.chdir(tmp_path)
    assert load(tiny_config(Path(root.name))) == load(tiny_config(root))


def test_config_without_a_data_set() -> None:
    cfg = OmegaConf.create({"model": 1})
    assert resolve_root(cfg) is cfg


@pytest.mark.parametrize("base", ["coco", "sem_seg", "coco_panoptic", "lvis", "cityscapes"])
def test_is_not_ignored_by_other_scripts(base: str, yolo: Path) -> None:
    """Detectron2's own script sets the key, and builds the loaders."""
    base = get_config(f"common/data/{base}.py")
    cfg = OmegaConf.create(
        {"dataset": base.dataset, "dataloader": base.dataloader}, flags={"allow_objects": True}
    )
    LazyConfig.apply_overrides(cfg, [f"dataset.root='{yolo}'"])
    for role in ("train", "test"):
        with pytest.raises(ValueError, match=r"dataset\.root=.* vitadapter's own scripts alone"):
            instantiate(cfg.dataloader[role].dataset)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.num_classes=3", r"has dataset\.num_classes=2, but the override says 3"),
        ("dataset.test.json_file=val.json", r"the override says val\.json"),
        ("dataset.train={image_root: images}", r"the override says images"),
        ("dataset.exclude=[1]", "must be a list of texts"),
    ],
)
def test_contradicting_overrides(yolo: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(yolo, override)


def test_override_that_agrees(yolo: Path) -> None:
    assert tiny_config(yolo, "dataset.num_classes=2").dataset.num_classes == 2


def test_second_start_reads_no_label_file(yolo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: object, **options: object) -> object:
        calls.append(1)
        return write_prepared(*arguments, **options)

    monkeypatch.setattr(prepare, "write_prepared", counted)
    first = load(tiny_config(yolo))
    assert load(tiny_config(yolo)) == first
    assert len(calls) == 1
    label = yolo / "train" / "labels" / "000.txt"
    label.write_text(label.read_text().splitlines()[0])
    assert [len(r["annotations"]) for r in load(tiny_config(yolo))[0]] == [1, 2, 2, 2]
    assert len(calls) == 2


def test_cache_that_cannot_be_written(
    yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot be written .* XDG_CACHE_HOME"):
        tiny_config(yolo)


def test_convert(yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "converted"
    assert convert([str(yolo), "--output", str(out)]) == 0
    overrides = [line.strip("'") for line in capsys.readouterr().out.splitlines()]
    assert f"dataset.train.json_file={out / 'train.json'}" in overrides
    assert load(load_config(str(TINY_CONFIG), overrides)) == load(tiny_config(yolo))
    assert convert([str(yolo), "--output", str(out)]) == 1
    assert "must be a new or an empty folder" in capsys.readouterr().err
    assert convert([str(yolo), "--output", str(yolo / "x")]) == 1
    assert "must not lie in the folder that is read" in capsys.readouterr().err


def test_convert_leaves_nothing_behind(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (yolo / "train" / "labels" / "000.txt").write_text("9 0.5 0.5 0.1 0.1")
    before = sorted(tmp_path.iterdir())
    assert convert([str(yolo), "--output", str(tmp_path / "converted")]) == 1
    assert "has the class 9" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ignore-label", "0"], "are of label maps: leave them out of instances"),
        (["--reduce-zero-label"], "are of label maps: leave them out of instances"),
        (["--kind", "semantic", "--unlabelled", "skip"], "leave it out of semantic data"),
    ],
)
def test_options_of_other_kinds_of_data(
    yolo: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check([str(yolo), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_messages_name_the_options_of_the_command(
    yolo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are written for training, whose overrides the command does not take."""
    (yolo / "train" / "labels" / "000.txt").write_text("9 0.5 0.5 0.1 0.1")
    assert check([str(yolo)]) == 1
    *_, error, options = capsys.readouterr().err.splitlines()
    assert "dataset.exclude=[...]" in error
    assert options == "dataset.exclude is --exclude PATTERN here"


def test_number_of_images_to_check(yolo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check([str(yolo), "--images", "0"])
    assert "--images must be at least 1, got 0" in capsys.readouterr().err


def test_check(yolo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(yolo)]) == 0
    assert "| images read " in capsys.readouterr().out
    (yolo / "valid" / "images" / "004.png").write_bytes(
        (yolo / "train" / "images" / "000.png").read_bytes()
    )
    assert check([str(yolo)]) == 1
    assert "refused: dataset.train has 1 image of dataset.test" in capsys.readouterr().out
    assert check([str(yolo / "absent")]) == 1
    assert "must be a folder" in capsys.readouterr().err


def test_check_of_a_folder_without_a_known_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    assert check([str(folder)]) == 1
    assert "photos holds no file that is read" in capsys.readouterr().err
    (folder / "a.png").write_bytes(b"")
    assert check([str(folder)]) == 1
    said = capsys.readouterr().err
    for known in ("COCO, YOLO, Pascal VOC, labelme, COCO panoptic or label maps", "1 empty file"):
        assert known in said
