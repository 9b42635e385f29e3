import logging
from pathlib import Path

import pytest
import torch
from coco_samples import make_content, write_coco
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig
from training_samples import last, load, metrics_of, predictions_of

from vitadapter.engine import trainer as trainer_module
from vitadapter.engine import writers
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.trainer import do_eval_only, do_test, do_train


class OldAdamW(torch.optim.AdamW):
    """Keeps `betas` as it is given, as PyTorch did up to 2.6 at least."""

    def __init__(self, params: list[dict], lr: float, betas: object, weight_decay: float) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)
        for group in (self.defaults, *self.param_groups):
            group["betas"] = betas


def test_trains_evaluates_and_writes(cfg: DictConfig) -> None:
    results = do_train(cfg)
    assert set(results) == {"bbox", "segm"}
    assert last(cfg) == "model_final.pth"
    state = load(cfg, "model_final.pth")
    assert state["trainer"]["iteration"] == 2
    rows = metrics_of(cfg)
    assert [row["iteration"] for row in rows if "total_loss" in row] == [0, 1, 2]
    assert any("bbox/AP" in row for row in rows)
    assert {"lr", "loss_mask", "loss_cls", "data_time"} <= rows[0].keys()
    assert 0 < rows[0]["images_per_second"] < 1e5
    # PyTorch alone takes more than 100 MiB.
    assert 100 < rows[0]["memory_mb"] < 1e5
    assert list(Path(cfg.train.output_dir).glob("events.out.tfevents.*"))
    assert not list(Path(cfg.train.output_dir).glob("*partial*"))
    assert not Path(cfg.train.output_dir, "predictions").exists()


def test_works_without_tensorboard(cfg: DictConfig, monkeypatch, caplog) -> None:
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
    cfg.train.max_iter = 1
    with caplog.at_level(logging.WARNING, "vitadapter"):
        do_train(cfg)
    assert "tensorboard is not installed" in caplog.text
    assert len(metrics_of(cfg)) >= 1


def test_evaluates_on_the_way(cfg: DictConfig) -> None:
    cfg.train.eval_period = 1
    do_train(cfg)
    rows = [row["iteration"] for row in metrics_of(cfg) if "bbox/AP" in row]
    assert len(rows) == 3


def test_a_finished_run_is_only_evaluated(cfg: DictConfig, monkeypatch) -> None:
    evaluate = trainer_module.inference_on_dataset

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module, "inference_on_dataset", interrupt)
    with pytest.raises(KeyboardInterrupt):
        do_train(cfg)
    assert not any("bbox/AP" in row for row in metrics_of(cfg))
    folder = Path(cfg.train.output_dir)
    saved = (folder / "model_final.pth").stat().st_mtime_ns

    monkeypatch.setattr(trainer_module, "inference_on_dataset", evaluate)
    results = do_train(cfg, resume=True)
    assert results.keys() == {"bbox", "segm"}
    assert predictions_of(folder)
    assert (folder / "model_final.pth").stat().st_mtime_ns == saved
    row = metrics_of(cfg)[-1]
    assert row["bbox/AP"] == results["bbox"]["AP"]
    # As an evaluation at the end of training writes it.
    uninterrupted = cfg.copy()
    uninterrupted.train.output_dir = f"{folder}_uninterrupted"
    do_train(uninterrupted)
    evaluated = metrics_of(uninterrupted)[-1]
    assert {k for k in evaluated if "/" in k} == {k for k in row if "/" in k}
    assert evaluated["iteration"] == row["iteration"]

    cfg.train.max_iter = 5
    do_train(cfg, resume=True)
    assert load(cfg, "model_final.pth")["trainer"]["iteration"] == 4


def test_lists_of_the_config_do_not_reach_checkpoints(cfg: DictConfig) -> None:
    cfg.optimizer._target_ = OldAdamW
    apply_overrides(cfg, ["optimizer.betas=[0.9,0.95]", "train.max_iter=1"])
    do_train(cfg)
    group = load(cfg, "model_final.pth")["trainer"]["optimizer"]["param_groups"][0]
    assert group["betas"] == (0.9, 0.95)


def test_evaluation_only(cfg: DictConfig, tmp_path: Path) -> None:
    do_train(cfg)
    model = instantiate(cfg.model)
    model.load_state_dict(load(cfg, "model_final.pth")["model"])
    expected = predictions_of(cfg.train.output_dir)
    assert expected
    trained = metrics_of(cfg)[-1]
    cfg.train.init_checkpoint = f"{cfg.train.output_dir}/model_final.pth"
    cfg.train.output_dir = str(tmp_path / "evaluated")
    assert do_eval_only(cfg).keys() == {"bbox", "segm"}
    assert predictions_of(cfg.train.output_dir) == expected
    # In the row that training has written for these weights.
    row = metrics_of(cfg)[-1]
    assert row["iteration"] == trained["iteration"] == 3
    assert row["bbox/AP"] == trained["bbox/AP"]
    cfg.train.output_dir = str(tmp_path / "tested")
    assert do_test(cfg, model).keys() == {"bbox", "segm"}
    assert predictions_of(cfg.train.output_dir) == expected


@pytest.mark.parametrize("change", ["dataloader.evaluator=null", "~dataloader.evaluator"])
def test_without_an_evaluator_nothing_is_evaluated(cfg: DictConfig, change: str) -> None:
    apply_overrides(cfg, [change, "~dataset.test", "train.max_iter=1", "train.eval_period=1"])
    assert do_train(cfg) == {}
    assert not Path(cfg.train.output_dir, "inference").exists()
    assert do_test(cfg, instantiate(cfg.model)) == {}


def test_weights_of_another_number_of_classes(cfg: DictConfig, tmp_path: Path, caplog) -> None:
    weights = tmp_path / "coco.pth"
    other = apply_overrides(cfg.copy(), ["dataset.num_classes=80"])
    torch.save({"model": instantiate(other.model).state_dict()}, weights)
    cfg.train.init_checkpoint = str(weights)
    with pytest.raises(SetupError, match=r"coco\.pth is of another model: 6 of .*cls_score"):
        do_eval_only(cfg)
    cfg.train.max_iter = 1
    with caplog.at_level(logging.WARNING, "vitadapter"):
        do_train(cfg)  # with a new head
    assert "cls_score.weight" in caplog.text


def test_weights_under_foreign_names_are_refused(cfg: DictConfig, tmp_path: Path) -> None:
    cfg.train.init_checkpoint = str(tmp_path / "raw.pth")
    torch.save({"blocks.0.attn.qkv.weight": torch.ones(3, 1)}, cfg.train.init_checkpoint)
    for run in (do_eval_only, do_train):
        with pytest.raises(SetupError, match=r"raw\.pth has none of the .*blocks\.0\.attn"):
            run(cfg)


def test_weights_to_start_from(cfg: DictConfig, tmp_path: Path) -> None:
    cfg.train.max_iter = 1
    do_train(cfg)
    cfg.train.init_checkpoint = f"{cfg.train.output_dir}/model_final.pth"
    weights = load(cfg, "model_final.pth")["model"]
    cfg.train.output_dir = str(tmp_path / "second")
    cfg.optimizer.lr = 0.0
    do_train(cfg)
    state = load(cfg, "model_final.pth")
    assert state["trainer"]["iteration"] == 0
    for name, value in weights.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(state["model"][name], value), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.log_period=0", r"train\.log_period"),
        ("dataset.num_classes=7", r"2 classes.*predicts 7.*dataset\.num_classes=2"),
        ("dataset.test.json_file=/nowhere.json", r"dataset\.test\.json_file="),
    ],
)
def test_refused_before_training(cfg: DictConfig, override: str, message: str) -> None:
    output = Path(cfg.train.output_dir)
    with pytest.raises(SetupError, match=message):
        do_train(LazyConfig.apply_overrides(cfg, [override]))
    assert not output.exists() or not list(output.iterdir())


def test_classes_in_another_order_are_refused(cfg: DictConfig, tmp_path: Path) -> None:
    content = make_content(images=2)
    names = [category["name"] for category in content["categories"]]
    for category, name in zip(content["categories"], reversed(names), strict=True):
        category["name"] = name
    paths = write_coco(tmp_path / "swapped", content)
    cfg.dataset.test.json_file, cfg.dataset.test.image_root = paths
    with pytest.raises(ValueError, match="class 0 is 'class0' in the training data but 'class1'"):
        do_train(cfg)


def test_another_number_of_classes_is_refused(cfg: DictConfig, tmp_path: Path) -> None:
    paths = write_coco(tmp_path / "more", make_content(images=2, classes=3))
    cfg.dataset.test.json_file, cfg.dataset.test.image_root = paths
    cfg.dataloader.test.dataset.num_classes = 3
    with pytest.raises(
        SetupError, match=r"training data has 2 classes, the test data 3.*json_file="
    ):
        do_train(cfg)
    del cfg.dataset.test.image_root
    cfg.dataloader.evaluator = None
    cfg.train.max_iter = 1
    assert do_train(cfg) == {}


def test_a_corrupt_image_is_skipped(cfg: DictConfig, caplog) -> None:
    Path(cfg.dataset.train.image_root, "002.png").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING, "vitadapter"):
        do_train(cfg)
    assert "002.png" in caplog.text


def test_a_corrupt_test_image_is_an_error_but_costs_no_training(cfg: DictConfig) -> None:
    Path(cfg.dataset.test.image_root, "001.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"test image .*001\.png"):
        do_train(cfg)
    assert load(cfg, last(cfg))["trainer"]["iteration"] == 2


def test_only_corrupt_images_are_refused(cfg: DictConfig) -> None:
    for path in Path(cfg.dataset.train.image_root).iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of the 4 images"):
        do_train(cfg)


@pytest.mark.parametrize("masks", ["rle", "mixed"])
def test_masks_of_both_kinds_train_together(cfg: DictConfig, tmp_path: Path, masks: str) -> None:
    polygons, others = make_content(images=2), make_content(images=4, masks=masks)
    content = {
        **others,
        "annotations": polygons["annotations"]
        + [a for a in others["annotations"] if a["image_id"] > 2],
    }
    paths = write_coco(tmp_path / "both", content)
    cfg.dataset.train.json_file, cfg.dataset.train.image_root = paths
    cfg.dataloader.train.total_batch_size = 4
    cfg.train.max_iter = 1
    assert "segm" in do_train(cfg)


def test_box_only_data_and_detector(cfg: DictConfig, tmp_path: Path) -> None:
    for part in ("train", "test"):
        paths = write_coco(tmp_path / "boxes" / part, make_content(masks="none"))
        cfg.dataset[part].json_file, cfg.dataset[part].image_root = paths
    with pytest.raises(ValueError, match="faster_rcnn_"):
        do_train(cfg)
    parts = ("mask_in_features", "mask_pooler", "mask_head")
    apply_overrides(cfg, [f"~model.roi_heads.{part}" for part in parts])
    cfg.dataloader.train.dataset.masks = False
    cfg.train.max_iter = 1
    assert set(do_train(cfg)) == {"bbox"}
