"""Runs that start from published weights, which a server on this machine stands in for."""

import io
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from file_server import FileServer
from omegaconf import DictConfig
from training_samples import metrics_of

from vitadapter.checkpoint.cache import cached_path
from vitadapter.commands import predict
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.published import log_published
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.trainer import do_eval_only, do_train
from vitadapter.model_zoo.trained_models import TRAINED_MODELS, TTA, TrainedModel

NAME = "COCO/mask_rcnn_vit_adapter_t_deit_1x"
FIGURES = {"": {"bbox/AP": 41.1, "segm/AP": 37.5}, TTA: {"bbox/AP": 43.0}}

Publish = Callable[..., bytes]


@pytest.fixture
def publish(cfg: DictConfig, server: FileServer, monkeypatch) -> Publish:
    """Serves random weights of the tiny config, after overrides, as those of an experiment."""

    def serve(*overrides: str) -> bytes:
        torch.manual_seed(1)
        file = io.BytesIO()
        model = instantiate(apply_overrides(cfg.copy(), overrides).model)
        torch.save({"model": model.state_dict()}, file)
        server.files["/w.pth"] = file.getvalue()
        entry = TrainedModel(server.url("/w.pth"), FIGURES, len(file.getvalue()))
        monkeypatch.setitem(TRAINED_MODELS, NAME, entry)
        return file.getvalue()

    return serve


def test_an_evaluation_shows_the_published_figures(
    cfg: DictConfig, publish: Publish, caplog
) -> None:
    publish()
    cfg.train.init_checkpoint = f"zoo://{NAME}"
    with caplog.at_level(logging.INFO, "vitadapter"):
        results = do_eval_only(cfg)
    (message,) = (r.getMessage() for r in caplog.records if "published for" in r.getMessage())
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in message.splitlines()]
    assert cells[0] == [f"zoo://{NAME}, published for its own test set:"]
    assert cells[1] == ["metric", "here", "published", f"published {TTA}"]
    assert cells[3] == ["bbox/AP", f"{results['bbox']['AP']:.1f}", "41.1", "43.0"]
    assert cells[4] == ["segm/AP", f"{results['segm']['AP']:.1f}", "37.5", "-"]


@pytest.mark.parametrize("source", ["output/model_final.pth", "https://host/w.pth"])
def test_other_weights_have_no_published_figures(source: str, caplog) -> None:
    with caplog.at_level(logging.INFO, "vitadapter"):
        log_published(source, {"bbox/AP": 1.0})
        log_published(f"zoo://{NAME}", {})  # in all processes but the first
    assert caplog.text == ""


def test_fine_tuning_with_other_classes(cfg: DictConfig, publish: Publish, caplog) -> None:
    publish("dataset.num_classes=7")
    cfg.train.update(init_checkpoint=f"zoo://{NAME}", max_iter=1)
    cfg.dataloader.evaluator = None
    with caplog.at_level(logging.INFO, "vitadapter"):
        do_train(cfg)
    assert len([row for row in metrics_of(cfg) if "total_loss" in row]) == 1
    report = Path(cfg.train.output_dir, "init_checkpoint_report.txt").read_text()
    assert report.startswith(f"zoo://{NAME} (names as they are): ")
    for text in (report, caplog.text):
        assert "wrong shape: 6" in text
        assert "box_predictor.cls_score.weight: (8, 16) in the file, (3, 16) here" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("COCO/mask_rcnn_vit_adapter_x_deit_1x", "no experiment .*near names"),
        ("COCO/mask_rcnn_vit_adapter_s_deit_1x", "no trained model of .*nearest"),
    ],
)
def test_a_name_without_weights_is_refused_first(cfg: DictConfig, name: str, message: str) -> None:
    """Before anything is built or written."""
    cfg.train.init_checkpoint = f"zoo://{name}"
    for run in (do_train, do_eval_only):
        with pytest.raises(SetupError, match=message):
            run(cfg)
    assert not Path(cfg.train.output_dir).exists()


def test_without_a_network(cfg: DictConfig, publish: Publish, server: FileServer) -> None:
    """The message says what to put where; put there, it is found."""
    content = publish()
    del server.files["/w.pth"]
    cfg.train.init_checkpoint = f"zoo://{NAME}"
    place = cached_path(server.url("/w.pth"))
    with pytest.raises(SetupError, match=rf"w\.pth cannot be downloaded: .*put it at {place}$"):
        do_eval_only(cfg)
    place.write_bytes(content)
    assert do_eval_only(cfg).keys() == {"bbox", "segm"}


def test_weights_that_were_damaged(cfg: DictConfig, publish: Publish, server: FileServer) -> None:
    content = bytearray(publish())
    content[-20:] = bytes(20)  # the end of the archive
    server.files["/w.pth"] = bytes(content)
    cfg.train.init_checkpoint = f"zoo://{NAME}"
    with pytest.raises(SetupError, match=r"w\.pth cannot be loaded.*on its way, delete it"):
        do_eval_only(cfg)


def test_the_demo(
    cfg: DictConfig, publish: Publish, tiny_config: Path, tmp_path: Path, capsys
) -> None:
    publish()
    config = tmp_path / f"{NAME}.py"
    config.parent.mkdir()
    shutil.copy(tiny_config, config)
    images, output = cfg.dataset.train.image_root, tmp_path / "drawn"
    arguments = ["--weights", "zoo", "--input", str(images), "--output", str(output)]
    assert predict.script(["--config-file", str(config), *arguments]) == 0
    assert len(list(output.glob("*.png"))) == 4
    assert predict.script(["--config-file", str(tiny_config), *arguments]) == 2
    assert "no experiment 'helpers/tiny_mask_rcnn'" in capsys.readouterr().err
