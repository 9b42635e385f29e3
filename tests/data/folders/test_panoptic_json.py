"""Folders in COCO's panoptic format load as their files do."""

import json
from pathlib import Path

import pytest
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf
from panoptic_samples import NUM_CLASSES, NUM_THINGS, some_ids, write_panoptic

from vitadapter.data.folders import resolve_root
from vitadapter.data.panoptic import load_panoptic_dataset
from vitadapter.engine.overrides import apply_overrides
from vitadapter.model_zoo import get_config


def config(root: Path, *overrides: str) -> DictConfig:
    cfg = OmegaConf.create({}, flags={"allow_objects": True})
    base = get_config("common/data/coco_panoptic.py")
    cfg.dataset, cfg.dataloader = base.dataset, base.dataloader
    cfg.train = {"output_dir": "output"}
    overrides = (f"dataset.root={root}", *overrides)
    return resolve_root(apply_overrides(cfg, overrides), overrides)


def write(root: Path, source: Path, suffix: str = ".jpg") -> dict[str, tuple[str, ...]]:
    """As COCO's own folder, from files of which the arguments of the loader are returned."""
    files = {}
    (root / "annotations").mkdir(parents=True)
    for split, seeds in (("train", (0, 1, 2)), ("val", (3, 4))):
        maps = {f"{seed:012d}": some_ids(seed) for seed in seeds}
        files[split] = write_panoptic(source / split, maps)
        (root / "annotations" / f"panoptic_{split}2017.json").write_bytes(
            Path(files[split].json_file).read_bytes()
        )
        Path(files[split].panoptic_root).rename(root / "annotations" / f"panoptic_{split}2017")
        Path(files[split].image_root).rename(root / f"{split}2017")
        files[split] = (
            files[split].json_file,
            str(root / "annotations" / f"panoptic_{split}2017"),
            str(root / f"{split}2017"),
        )
    return files


def test_loads_as_the_files(root: Path, tmp_path: Path) -> None:
    files = write(root, tmp_path / "source")
    cfg = config(root)
    assert (cfg.dataset.num_classes, cfg.dataset.num_things) == (NUM_CLASSES, NUM_THINGS)
    for role, split in (("train", "train"), ("test", "val")):
        expected = load_panoptic_dataset(
            split, *files[split], num_classes=NUM_CLASSES, num_things=NUM_THINGS, role=role
        )
        assert instantiate(cfg.dataloader[role].dataset) == expected


def test_a_split_is_made(root: Path, tmp_path: Path) -> None:
    write(root, tmp_path / "source")
    cfg = config(root, "dataset.exclude=[panoptic_val2017.json,val2017,panoptic_val2017]")
    found = [instantiate(cfg.dataloader[role].dataset) for role in ("train", "test")]
    assert [len(records) for records in found] == [2, 1]


def test_other_categories(root: Path, tmp_path: Path) -> None:
    write(root, tmp_path / "source")
    path = root / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "lion"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must have the same categories, got dog, cat, sky"):
        config(root)


def test_segments_that_are_not_listed(root: Path, tmp_path: Path) -> None:
    write(root, tmp_path / "source")
    path = root / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]["segments_info"][0]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"1 of 2 panoptic maps of dataset\.test cannot be used"):
        config(root)


def test_no_panoptic_file(root: Path, tmp_path: Path) -> None:
    write(root, tmp_path / "source")
    with pytest.raises(ValueError, match="no annotations in the format of COCO panoptic"):
        config(root, "dataset.exclude=annotations")
