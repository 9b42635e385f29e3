import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig
from panoptic_samples import MAPS, write_panoptic
from PIL import Image
from sem_seg_samples import some_labels, write_pairs

from vitadapter.commands import data
from vitadapter.commands.data_show import MappedSplit
from vitadapter.engine.overrides import load_config

FLIP = "dataloader.train.mapper.augmentations.0.prob=1.0"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def show(tmp_path: Path, *arguments: str) -> int:
    return data.main(["show", *arguments, "--output", str(tmp_path / "shown")])


def sheets(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "shown").iterdir())


def stored(cfg: DictConfig, split: str) -> tuple[list[np.ndarray], list[list[float]]]:
    """Images and boxes (x, y, w, h) of the files."""
    files = cfg.dataset[split]
    content = json.loads(Path(files.json_file).read_text())
    images = [
        np.asarray(Image.open(Path(files.image_root, i["file_name"]))) for i in content["images"]
    ]
    return images, [a["bbox"] for a in content["annotations"]]


def test_without_augmentations_the_files_are_shown(
    tiny_config: Path, overrides: list[str], cfg: DictConfig
) -> None:
    split = MappedSplit(load_config(str(tiny_config), [*overrides, FLIP]), "train")
    images, boxes = stored(cfg, "train")
    shown = [sample for _, sample in split.mapped(split.records, 0, augmented=False)]
    for image, sample in zip(images, shown, strict=True):
        np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), image)
    found = np.concatenate([sample["instances"].gt_boxes.tensor for sample in shown])
    np.testing.assert_allclose(found[:, :2], np.array(boxes)[:, :2])
    np.testing.assert_allclose(found[:, 2:] - found[:, :2], np.array(boxes)[:, 2:])


def test_augmented_images_are_those_of_the_mapper(
    tiny_config: Path, overrides: list[str], cfg: DictConfig
) -> None:
    split = MappedSplit(load_config(str(tiny_config), [*overrides, FLIP]), "train")
    images, boxes = stored(cfg, "train")
    shown = [sample for _, sample in split.mapped(split.records, 0, augmented=True)]
    np.testing.assert_array_equal(shown[0]["image"].permute(1, 2, 0), images[0][:, ::-1])
    x, _, width, _ = boxes[0]
    assert float(shown[0]["instances"].gt_boxes.tensor[0, 0]) == 64 - x - width


def test_test_images_have_their_own_size_and_annotations(
    tiny_config: Path, overrides: list[str]
) -> None:
    size = "dataloader.test.mapper.augmentations.0.short_edge_length=128"
    split = MappedSplit(load_config(str(tiny_config), [*overrides, FLIP, size]), "test")
    [(record, sample), _] = split.mapped(split.records, 0, augmented=True)
    assert sample["image"].shape == (3, 128, 128)
    x, y, width, height = record["annotations"][0]["bbox"]
    expected = [2 * side for side in (x, y, x + width, y + height)]
    np.testing.assert_allclose(sample["instances"].gt_boxes.tensor[0], expected)


def test_one_seed_draws_the_same_augmentations(tiny_config: Path, overrides: list[str]) -> None:
    split = MappedSplit(load_config(str(tiny_config), overrides), "train")
    drawn = []
    for seed in (1, 1, 2, 3):
        samples = split.mapped(split.records, seed, augmented=True)
        drawn.append(np.stack([sample["image"] for _, sample in samples]))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert any((drawn[0] != other).any() for other in drawn[2:])


def test_objects_too_small_for_the_model(
    tiny_config: Path, overrides: list[str], cfg: DictConfig, tmp_path: Path, capsys
) -> None:
    json_file = Path(cfg.dataset.test.json_file)
    content = json.loads(json_file.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"][2:] = [1, 2]
        annotation["segmentation"] = [[0, 0, 4, 0, 4, 4]]
    content["annotations"][0]["iscrowd"] = 1
    json_file.write_text(json.dumps(content))
    assert show(tmp_path, str(tiny_config), *overrides, "--split", "test") == 0
    printed = capsys.readouterr().out
    assert "test: 2 images with 1.5 objects each (at most 2)" in printed
    assert "advice: 100% of the objects are smaller than 4 pixels" in printed
    assert sheets(tmp_path) == ["test_1.png", "test_objects.png"]


def test_many_images_need_several_sheets(
    tiny_config: Path, overrides: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("vitadapter.commands.data_show.PER_SHEET", 3)
    assert show(tmp_path, str(tiny_config), *overrides) == 0
    assert sheets(tmp_path) == ["train_1.png", "train_2.png", "train_objects.png"]
    assert "advice" not in capsys.readouterr().out


def test_unusable_images_are_named_and_left_out(
    tiny_config: Path, overrides: list[str], cfg: DictConfig, tmp_path: Path, caplog
) -> None:
    Path(cfg.dataset.train.image_root, "001.png").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        assert show(tmp_path, str(tiny_config), *overrides) == 0
    assert "001.png" in caplog.text
    for name in ("000", "002", "003"):
        Path(cfg.dataset.train.image_root, f"{name}.png").write_bytes(b"broken")
    assert show(tmp_path, str(tiny_config), *overrides) == 1


def test_label_maps(tmp_path: Path, capsys) -> None:
    for split in ("train", "val"):
        write_pairs(tmp_path / "data" / split, {n: some_labels(s) for s, n in enumerate("ab")})
    names = [f"{split}/{kind}" for split in ("train", "val") for kind in ("images", "labels")]
    given = [
        f"dataset.{role}.{key}_root={tmp_path / 'data' / name}"
        for (role, key), name in zip(
            [(r, k) for r in ("train", "test") for k in ("image", "label")], names, strict=True
        )
    ]
    given += ["dataset.num_classes=3", "dataset.reduce_zero_label=False", "dataset.crop.size=32"]
    given += ["dataset.resize.short=32"]
    config = "ADE20K/upernet_vit_adapter_t_deit_160k"
    assert show(tmp_path, config, *given, "--augmented") == 0
    assert "train: 2 images with " in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "shown" / "train_augmented_1.png"))
    pair = 2 * 360 + 4  # an image beside its labels
    assert 2 * pair <= sheet.shape[1] < 2 * pair + 40
    assert sheets(tmp_path) == ["train_augmented_1.png", "train_objects.png"]


def test_segments(tmp_path: Path, capsys) -> None:
    files = write_panoptic(tmp_path / "data", MAPS)._asdict()
    given = [f"dataset.{r}.{key}={p}" for r in ("train", "test") for key, p in files.items()]
    given += ["dataset.num_classes=4", "dataset.num_things=2"]
    config = "COCOPanoptic/mask2former_vit_adapter_s_dinov3_frozen_lsj_50ep"
    assert show(tmp_path, config, *given) == 0
    assert "train: 3 images with" in capsys.readouterr().out
    assert sheets(tmp_path) == ["train_1.png", "train_objects.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "valid"], "--split valid needs dataloader.valid .* it has train, test"),
        (["--images", "0"], "number of images must be at least 1, got 0"),
        (["--seed", "-1"], "seed must not be negative, got -1"),
        (["model.roi_head=1"], "no key 'model.roi_head'"),
    ],
)
def test_mistakes_are_error_lines(
    tiny_config: Path,
    overrides: list[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys,
) -> None:
    assert show(tmp_path, str(tiny_config), *overrides, *arguments) == 1
    error = capsys.readouterr().err
    assert re.match(f"error: .*{message}", error.splitlines()[-1])


def test_the_output_is_a_folder(
    tiny_config: Path, overrides: list[str], tmp_path: Path, capsys
) -> None:
    (tmp_path / "shown").write_text("")
    assert show(tmp_path, str(tiny_config), *overrides) == 1
    assert "shown must be a folder, but it is a file" in capsys.readouterr().err
