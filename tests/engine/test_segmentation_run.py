"""A small UPerNet through the training loop, the evaluation, the predictor and the pictures."""

import json
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from omegaconf import DictConfig
from project_configs import PROJECT, load
from sem_seg_samples import some_labels, write_pairs

from vitadapter.data.sem_seg import LabelReader
from vitadapter.engine.prediction_files import FoundWriter, InputFiles
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.trainer import do_train
from vitadapter.model_zoo import get_config
from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.predictions import Selection, class_names
from vitadapter.visualization.sem_seg_gallery import draw_sem_seg_gallery

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture
def cfg(tmp_path: Path) -> DictConfig:
    """The quickstart's config, cut down, on four images with three classes."""
    images, labels = write_pairs(tmp_path, {f"{i}": some_labels(i, (32, 48)) for i in range(4)})
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    cfg = load(PROJECT / "configs/Digits/upernet_vit_adapter_t.py")
    for part in ("train", "test"):
        cfg.dataset[part].update(image_root=str(images), label_root=str(labels))
    cfg.dataset.update(num_classes=3, class_names=str(tmp_path / "classes.txt"))
    cfg.dataset.resize.update(short=32, long=48)
    cfg.dataset.crop.update(size=32, stride=16)
    cfg.dataloader.train.total_batch_size = 2
    cfg.model.backbone.net.update(embed_dim=32, depth=4, num_heads=2, pretrain_img_size=32)
    cfg.model.backbone.deform_num_heads = 4
    cfg.model.sem_seg_head.head.channels = 16
    cfg.model.sem_seg_head.auxiliary_head.channels = 8
    cfg.lr_multiplier.warmup_iters = 1
    cfg.train.update(max_iter=2, log_period=1, device="cpu", output_dir=str(tmp_path / "output"))
    return cfg


def test_trains_evaluates_and_draws(cfg: DictConfig, tmp_path: Path) -> None:
    results = do_train(cfg)
    output = tmp_path / "output"
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert {"loss_sem_seg", "loss_sem_seg_aux"} <= set(rows[0])
    assert rows[-1]["sem_seg/mIoU"] == pytest.approx(results["sem_seg"]["mIoU"])
    assert "| road" in (output / "inference/sem_seg_results.md").read_text()

    predictor = LazyPredictor(cfg, str(output / "model_final.pth"))
    assert predictor.metadata.stuff_classes == ["sky", "road", "car"]
    image = cv2.imread(str(tmp_path / "images/0.jpg"))
    prediction = predictor(image)
    assert prediction["sem_seg"].shape == (3, 32, 48)
    found = Selection()(prediction)
    files = InputFiles(tmp_path / "drawn.png", maps=tmp_path / "map.png")
    palette = Palette(class_names(predictor.metadata))
    with FoundWriter.open(files, tmp_path, Path("0.jpg"), palette, {}) as writer:
        writer.add(image, found)
    drawn = cv2.imread(str(files.picture))
    assert drawn.shape[0] > image.shape[0]  # with a legend
    assert (drawn[:32] != image).any()
    expected = prediction["sem_seg"].argmax(0)
    np.testing.assert_array_equal(LabelReader(num_classes=3)(str(files.maps)), expected)


@pytest.mark.parametrize(("total", "steps"), [(1, 1), (2, 2)])
def test_micro_batches_of_one_image_are_refused(cfg: DictConfig, total: int, steps: int) -> None:
    cfg.dataloader.train.total_batch_size, cfg.train.accumulate_steps = total, steps
    message = r"at least 2 images at a time, got 1 .*model\.sem_seg_head\.head\.norm=GN"
    with pytest.raises(SetupError, match=message):
        do_train(cfg)
    cfg.dataset.crop.size = 64  # so that the coarsest map has more than one cell
    cfg.model.sem_seg_head.head.norm = "GN"
    cfg.model.sem_seg_head.head.channels = 64
    cfg.model.sem_seg_head.auxiliary_head.channels = 64
    cfg.dataloader.evaluator = None
    do_train(cfg)


def test_multi_scale_testing(cfg: DictConfig) -> None:
    """Probabilities instead of logits."""
    cfg.train.inference.tta = get_config("common/sem_seg_tta.py").multi_scale_flip
    cfg.train.inference.tta.wrapper.resizes.update(ratios=[1.0], short=32, long=48)
    cfg.train.inference.tta.enabled = True
    predictor = LazyPredictor(cfg, "")
    scores = predictor(np.zeros((32, 48, 3), np.uint8))["sem_seg"]
    np.testing.assert_allclose(scores.sum(0).numpy(), np.ones((32, 48)), atol=1e-5)


def test_gallery(tmp_path: Path) -> None:
    images, labels = write_pairs(tmp_path, {"a": some_labels(0, (32, 48))})
    record = {"file_name": str(images / "a.jpg"), "sem_seg_file_name": str(labels / "a.png")}
    options = {"read_label": LabelReader(3), "class_names": ["sky", "road", "car"]}
    predictions = tmp_path / "sem_seg_predictions.json"
    with pytest.raises(ValueError, match="does not exist"):
        draw_sem_seg_gallery([record], predictions, tmp_path / "out", **options)
    predictions.write_text('[{"file_name": "other.jpg"}]')
    with pytest.raises(ValueError, match="holds no prediction for any"):
        draw_sem_seg_gallery([record], predictions, tmp_path / "out", **options)
    predictions.write_text("{")
    with pytest.raises(ValueError, match="does not hold predicted segments"):
        draw_sem_seg_gallery([record], predictions, tmp_path / "out", **options)
    rle = mask_util.encode(np.asfortranarray(np.ones((32, 48), np.uint8)))
    segment = {"size": rle["size"], "counts": rle["counts"].decode()}
    content = [{"file_name": record["file_name"], "category_id": 1, "segmentation": segment}]
    predictions.write_text(json.dumps(content))
    single, overview = draw_sem_seg_gallery([record], predictions, tmp_path / "out", **options)
    picture = cv2.imread(str(single))
    caption, gap = 24, 6
    assert picture.shape[1] == 3 * 48 + 4 * gap
    captions, legend = picture[:caption], picture[caption + 32 + gap :]
    assert (captions < 128).any()
    assert (legend < 128).any()
    # Image, truth and prediction; the prediction has one colour, but for the grey below.
    rows = picture[caption : caption + 32]
    parts = [rows[:, at : at + 48] for at in (6, 60, 114)]
    np.testing.assert_array_equal(parts[0], cv2.imread(str(images / "a.jpg")))
    assert (parts[1] != parts[2]).any()
    assert cv2.imread(str(overview)).shape[0] > 200
