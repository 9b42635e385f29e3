from pathlib import Path

import pytest
from detectron2.data.detection_utils import read_image
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.pictures import indexed_samples
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.trainer import do_train


def test_the_same_images_are_drawn_after_evaluations(cfg: DictConfig) -> None:
    apply_overrides(
        cfg,
        [
            "train.pictures.period=2",
            "train.pictures.number=1",
            "train.eval_period=1",
            "train.max_iter=3",
            # Of what an untrained model finds.
            "train.pictures.score_threshold=0",
        ],
    )
    do_train(cfg)
    folder = Path(cfg.train.output_dir)
    pictures = sorted((folder / "predictions").iterdir())
    assert [p.name for p in pictures] == [f"0_000_{n:07d}.jpg" for n in (2, 3)]
    original = read_image(Path(cfg.dataset.test.image_root, "000.png"), "RGB").astype(int)
    drawn = [read_image(picture, "RGB") for picture in pictures]
    assert all(image.shape == original.shape for image in drawn)
    # JPEG alone changes the grey background by less.
    assert all((abs(image - original) > 50).any(axis=2).mean() > 0.02 for image in drawn)
    assert (drawn[0] != drawn[1]).any()
    events = EventAccumulator(str(folder)).Reload()
    assert [e.step for e in events.Images("predictions/0_000")][-1] == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.pictures.period=-1"], r"period must be 0 or a positive integer, got -1"),
        (["train.pictures.score_threshold=50"], r"must be a number from 0 to 1, got 50"),
        (["train.pictures.number=0"], r"number must be a positive integer, got 0"),
        (
            ["train.pictures.period=1", "dataloader.evaluator=null"],
            r"pictures\.period=1 counts evaluations",
        ),
    ],
)
def test_settings_that_cannot_work(cfg: DictConfig, overrides: list[str], message: str) -> None:
    with pytest.raises((SetupError, ValueError), match=message):
        do_train(apply_overrides(cfg, overrides))


def test_a_loader_without_numbers() -> None:
    with pytest.raises(ValueError, match=r"got generator: set train\.pictures\.period=0"):
        indexed_samples(image for image in ())
