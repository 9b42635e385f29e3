import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from coco_samples import make_content, write_coco
from detectron2.config import instantiate
from omegaconf import DictConfig

from vitadapter.data.dataset_mapper import DatasetMapper
from vitadapter.engine import trainer as trainer_module
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.trainer import check_run, do_eval_only, do_test, do_train


class OldAdamW(torch.optim.AdamW):
    """Keeps `betas` as it is given, as PyTorch did up to 2.6 at least."""

    def __init__(self, params: list[dict], lr: float, betas: object, weight_decay: float) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)
        for group in (self.defaults, *self.param_groups):
            group["betas"] = betas


def metrics_of(cfg: DictConfig) -> list[dict]:
    lines = Path(cfg.train.output_dir, "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def load(cfg: DictConfig, name: str) -> dict:
    return torch.load(Path(cfg.train.output_dir, name), weights_only=True)


def last(cfg: DictConfig) -> str:
    return Path(cfg.train.output_dir, "last_checkpoint").read_text()


class ActingMapper(DatasetMapper):
    """Calls `action` when the `at`-th image is asked for (from 0); it may change the sample."""

    def __init__(self, action: Callable[[dict], None], at: int, **options) -> None:
        super().__init__(**options)
        self.action, self.at, self.calls = action, at, 0

    def __call__(self, dataset_dict: dict) -> dict | None:
        sample = super().__call__(dataset_dict)
        if self.calls == self.at:
            self.action(sample)
        self.calls += 1
        return sample


class SignallingAdamW(torch.optim.AdamW):
    """Gets SIGTERM in the middle of its second step."""

    steps = 0

    def step(self, closure: None = None) -> None:
        self.steps += 1
        if self.steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        super().step()


def predictions_of(folder: str | Path) -> list[dict]:
    return json.loads(Path(folder, "inference", "coco_instances_results.json").read_text())


def act(cfg: DictConfig, action: Callable[[dict], None], at: int) -> None:
    """Makes the training mapper of `cfg` act; one image per iteration."""
    cfg.dataloader.train.total_batch_size = 1
    mapper = cfg.dataloader.train.mapper
    mapper._target_ = ActingMapper
    mapper.action, mapper.at = action, at


def raise_interrupt(sample: dict) -> None:
    raise KeyboardInterrupt


def raise_error(sample: dict) -> None:
    raise RuntimeError("out of memory")


def send_signal(sample: dict) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def spoil_image(sample: dict) -> None:
    sample["image"] = torch.full(sample["image"].shape, float("nan"))


def test_trains_evaluates_and_writes(cfg: DictConfig) -> None:
    results = do_train(cfg)
    assert set(results) == {"bbox", "segm"}
    assert last(cfg) == "model_final.pth"
    state = load(cfg, "model_final.pth")
    assert state["trainer"]["iteration"] == 2
    rows = metrics_of(cfg)
    assert [row["iteration"] for row in rows if "total_loss" in row] == [0, 1, 2]
    assert any("bbox/AP" in row for row in rows)
    assert {"lr", "loss_mask", "loss_cls"} <= rows[0].keys()
    assert list(Path(cfg.train.output_dir).glob("events.out.tfevents.*"))
    assert not list(Path(cfg.train.output_dir).glob("*partial*"))


def test_works_without_tensorboard(cfg: DictConfig, monkeypatch, caplog) -> None:
    monkeypatch.setattr(trainer_module.importlib.util, "find_spec", lambda name: None)
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


def on_one_image(cfg: DictConfig, folder: Path) -> DictConfig:
    """So that a run's course does not depend on the order of the data, which a resume redraws."""
    paths = write_coco(folder / "one", make_content(images=1))
    cfg.dataset.train.json_file, cfg.dataset.train.image_root = paths
    cfg.dataloader.train.total_batch_size = 1
    cfg.dataloader.train.mapper.augmentations = []
    cfg.train.max_iter = 4
    return cfg


@pytest.mark.parametrize("stop", [raise_interrupt, raise_error, send_signal, spoil_image])
def test_stopped_and_resumed_equals_uninterrupted(
    cfg: DictConfig, tmp_path: Path, stop: Callable, caplog
) -> None:
    on_one_image(cfg, tmp_path)
    mapper = cfg.dataloader.train.mapper.copy()
    cfg.train.output_dir = str(tmp_path / "straight")
    torch.manual_seed(0)
    do_train(cfg)
    expected = load(cfg, "model_final.pth")

    cfg.train.output_dir = str(tmp_path / "stopped")
    act(cfg, stop, at=2)
    torch.manual_seed(0)
    expected_error = {raise_error: RuntimeError, spoil_image: FloatingPointError}
    error = expected_error.get(stop, KeyboardInterrupt)
    with caplog.at_level(logging.WARNING, "vitadapter"), pytest.raises(error):
        do_train(cfg)
    assert last(cfg) == "model_0000001.pth"
    assert load(cfg, "model_0000001.pth")["trainer"]["iteration"] == 1
    assert "2 of 4 iterations" in caplog.text
    assert "--resume" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    cfg.dataloader.train.mapper = mapper
    do_train(cfg, resume=True)
    resumed = load(cfg, "model_final.pth")
    assert [r["iteration"] for r in metrics_of(cfg) if "total_loss" in r] == [0, 1, 2, 3]
    for key, value in expected["model"].items():
        torch.testing.assert_close(resumed["model"][key], value, atol=1e-6, rtol=1e-5)
    for index, moments in expected["trainer"]["optimizer"]["state"].items():
        torch.testing.assert_close(
            resumed["trainer"]["optimizer"]["state"][index], moments, atol=1e-6, rtol=1e-4
        )


def test_a_signal_waits_for_the_end_of_the_update(cfg: DictConfig) -> None:
    cfg.optimizer._target_ = SignallingAdamW
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        do_train(cfg)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert last(cfg) == "model_0000001.pth"
    moments = load(cfg, "model_0000001.pth")["trainer"]["optimizer"]["state"]
    assert {float(m["step"]) for m in moments.values()} == {2.0}
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_second_interrupt_does_not_break_off_the_saving(cfg: DictConfig, monkeypatch) -> None:
    save = torch.save

    def interrupt_and_save(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save(*arguments)

    monkeypatch.setattr(torch, "save", interrupt_and_save)
    act(cfg, raise_error, at=1)
    with pytest.raises(RuntimeError, match="out of memory"):
        do_train(cfg)
    assert last(cfg) == "model_0000000.pth"
    assert load(cfg, last(cfg))["trainer"]["iteration"] == 0


def test_stopped_in_the_first_iteration_saves_nothing(cfg: DictConfig, caplog) -> None:
    act(cfg, raise_interrupt, at=0)
    with caplog.at_level(logging.WARNING, "vitadapter"), pytest.raises(KeyboardInterrupt):
        do_train(cfg)
    assert not list(Path(cfg.train.output_dir).glob("*.pth"))
    assert "nothing to save" in caplog.text


def test_stopped_in_the_last_iteration_is_not_evaluated(cfg: DictConfig) -> None:
    act(cfg, raise_interrupt, at=2)
    with pytest.raises(KeyboardInterrupt):
        do_train(cfg)
    assert last(cfg) == "model_0000001.pth"
    assert not any("bbox/AP" in row for row in metrics_of(cfg))


def test_loss_that_is_not_finite_names_iteration_and_images(cfg: DictConfig) -> None:
    act(cfg, spoil_image, at=1)
    with pytest.raises(FloatingPointError, match=r"iteration 1, images: .*00\d\.png"):
        do_train(cfg)
    state = load(cfg, last(cfg))
    assert state["trainer"]["iteration"] == 0
    assert all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())


def test_weights_that_are_not_finite_are_not_saved(cfg: DictConfig, caplog) -> None:
    cfg.optimizer.lr = float("inf")
    with caplog.at_level(logging.ERROR, "vitadapter"), pytest.raises(FloatingPointError):
        do_train(cfg)
    assert "NaN weights" in caplog.text
    assert not list(Path(cfg.train.output_dir).glob("*.pth"))


def test_a_finished_run_is_only_evaluated(cfg: DictConfig) -> None:
    do_train(cfg)
    folder = Path(cfg.train.output_dir)
    saved = (folder / "model_final.pth").stat().st_mtime_ns
    predictions = predictions_of(folder)
    assert predictions
    (folder / "inference" / "coco_instances_results.json").unlink()
    assert do_train(cfg, resume=True).keys() == {"bbox", "segm"}
    assert predictions_of(folder) == predictions
    assert (folder / "model_final.pth").stat().st_mtime_ns == saved
    cfg.train.max_iter = 5
    do_train(cfg, resume=True)
    assert load(cfg, "model_final.pth")["trainer"]["iteration"] == 4


def test_lists_of_the_config_do_not_reach_checkpoints(cfg: DictConfig) -> None:
    cfg.optimizer._target_ = OldAdamW
    apply_overrides(cfg, ["optimizer.betas=[0.9,0.95]", "train.max_iter=1"])
    do_train(cfg)
    group = load(cfg, "model_final.pth")["trainer"]["optimizer"]["param_groups"][0]
    assert group["betas"] == (0.9, 0.95)


def test_resume_without_checkpoint_starts_anew(cfg: DictConfig) -> None:
    cfg.train.max_iter = 1
    do_train(cfg, resume=True)
    assert load(cfg, "model_final.pth")["trainer"]["iteration"] == 0


def test_resume_from_a_lost_file_names_the_others(cfg: DictConfig) -> None:
    cfg.train.max_iter = 1
    do_train(cfg)
    Path(cfg.train.output_dir, "last_checkpoint").write_text("model_0000007.pth")
    with pytest.raises(ValueError, match=r"model_0000007\.pth.*model_final\.pth"):
        do_train(cfg, resume=True)


def test_a_used_folder_is_not_overwritten(cfg: DictConfig) -> None:
    cfg.train.max_iter = 1
    do_train(cfg)
    with pytest.raises(ValueError, match=r"already holds checkpoints.*--resume.*output_dir="):
        do_train(cfg)


def test_evaluation_only(cfg: DictConfig, tmp_path: Path) -> None:
    do_train(cfg)
    model = instantiate(cfg.model)
    model.load_state_dict(load(cfg, "model_final.pth")["model"])
    expected = predictions_of(cfg.train.output_dir)
    assert expected
    cfg.train.init_checkpoint = f"{cfg.train.output_dir}/model_final.pth"
    cfg.train.output_dir = str(tmp_path / "evaluated")
    assert do_eval_only(cfg).keys() == {"bbox", "segm"}
    assert predictions_of(cfg.train.output_dir) == expected
    cfg.train.output_dir = str(tmp_path / "tested")
    assert do_test(cfg, model).keys() == {"bbox", "segm"}
    assert predictions_of(cfg.train.output_dir) == expected
    del cfg.dataloader.evaluator
    assert do_test(cfg, model) == {}


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
        ("train.init_checkpoint=/nowhere/w.pth", r"/nowhere/w\.pth.*train\.init_checkpoint="),
        ("train.amp.enabled=True", r"set train\.amp\.enabled=False"),
        ("train.max_iter=many", r"train\.max_iter.*'many'"),
        ("train.max_iter=0", r"train\.max_iter"),
        ("train.output_dir=''", r"train\.output_dir"),
        ("train.device=cuda", r"set train\.device=cpu"),
        ("dataset.num_classes=7", r"2 classes.*predicts 7.*dataset\.num_classes=2"),
        ("dataset.test.json_file=/nowhere.json", r"dataset\.test\.json_file="),
    ],
)
def test_refused_before_training(cfg: DictConfig, override: str, message: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = Path(cfg.train.output_dir)
    with pytest.raises(ValueError, match=message):
        do_train(apply_overrides(cfg, [override]))
    assert not output.exists() or not list(output.iterdir())


def test_evaluation_needs_weights(cfg: DictConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--eval-only needs weights.*train\.init_checkpoint="):
        check_run(cfg, eval_only=True)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"not a checkpoint")
    cfg.train.init_checkpoint = str(broken)
    with pytest.raises(ValueError, match=r"broken\.pth cannot be loaded"):
        do_eval_only(cfg)


def test_classes_in_another_order_are_refused(cfg: DictConfig, tmp_path: Path) -> None:
    content = make_content(images=2)
    names = [category["name"] for category in content["categories"]]
    for category, name in zip(content["categories"], reversed(names), strict=True):
        category["name"] = name
    paths = write_coco(tmp_path / "swapped", content)
    cfg.dataset.test.json_file, cfg.dataset.test.image_root = paths
    with pytest.raises(ValueError, match="class 0 is 'class0' in the training data but 'class1'"):
        do_train(cfg)


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
    with pytest.raises(ValueError, match="none of the first 4 images"):
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
