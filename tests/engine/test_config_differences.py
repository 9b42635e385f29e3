import logging
from pathlib import Path

import pytest
from omegaconf import DictConfig

from vitadapter.engine.checkpoint_config import config_to_text
from vitadapter.engine.config_differences import name_differences
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.settings import fill_defaults

PATH = Path("model_0000009.pth")


def named(caplog, before: DictConfig, overrides: list[str]) -> list[str]:
    fill_defaults(before)
    after = apply_overrides(before.copy(), overrides)
    with caplog.at_level(logging.WARNING, "vitadapter"):
        name_differences(PATH, config_to_text(before), after)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.seed=4", "train.seed was 3, is 4 (all later random numbers and the order"),
        ("train.max_iter=9", "train.max_iter was 3, is 9 (the learning rate goes on"),
        ("lr_multiplier.end_value=0.5", "lr_multiplier.end_value was 0.1, is 0.5 (the learning"),
        (
            "dataloader.train.total_batch_size=4",
            "dataloader.train.total_batch_size was 2, is 4 (the data go on behind the images",
        ),
        ("train.accumulate_steps=2", "was 1, is 2 (gradients are summed up"),
        ("dataset.train.json_file=other.json", "is other.json (images may come again"),
        (
            "dataloader.train.mapper.augmentations.0.horizontal=False",
            "mapper.augmentations.0.horizontal was True, is False (the model sees other images)",
        ),
        (
            "model.roi_heads.box_head.fc_dims=[32]",
            "model.roi_heads.box_head.fc_dims.0 was 16, is 32 (the weights go on in a changed",
        ),
        ("+model.roi_heads.train_on_pred_boxes=True", "was absent, is True (the weights"),
        ("train.parallel=fsdp2", "train.parallel was ddp, is fsdp2 (numbers are rounded"),
        ("train.ema.decay=0.5", "train.ema.decay was 0.9999, is 0.5 (the average"),
        (
            "dataloader.test.mapper.augmentations.0.max_size=99",
            "augmentations.0.max_size was 128, is 99 (evaluations are not comparable",
        ),
    ],
)
def test_a_change_is_named_with_what_it_means(
    cfg: DictConfig, override: str, message: str, caplog
) -> None:
    (found,) = named(caplog, cfg, [override])
    assert found.startswith("the config is not that of model_0000009.pth: ")
    assert message in found


def test_what_changes_no_weights_is_not_named(cfg: DictConfig, caplog) -> None:
    overrides = [
        *("train.output_dir=elsewhere", "train.log_period=7", "train.checkpointer.period=9"),
        *("dataloader.train.num_workers=2", "train.writers=[]", "train.report=True"),
        *("train.eval_period=7", "train.best_checkpoint.metric=bbox/AP"),
        "optimizer.lr=0.5",  # named where it is applied
    ]
    assert named(caplog, cfg, overrides) == []


def test_many_changes_are_counted(cfg: DictConfig, caplog) -> None:
    after = cfg.copy()
    after.model.pixel_mean, after.model.pixel_std = [[1.0] * 3, [2.0] * 3]
    after.model.backbone.bottom_up.stages = []
    fill_defaults(cfg)
    fill_defaults(after)
    name_differences(PATH, config_to_text(cfg), after)
    (found,) = [record.getMessage() for record in caplog.records]
    assert found.count(" was ") == 8
    assert "more (the weights go on in a changed model)" in found


@pytest.mark.parametrize("text", [None, "", "[", "a: !!python/name:os.system ''"])
def test_a_checkpoint_without_a_config(cfg: DictConfig, text: object, caplog) -> None:
    fill_defaults(cfg)
    with caplog.at_level(logging.INFO, "vitadapter"):
        name_differences(PATH, text, cfg)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "carries no config to compare" in record.getMessage()
