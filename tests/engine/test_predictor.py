from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig

from vitadapter.engine.predictor import LazyPredictor


@pytest.fixture
def weights(cfg: DictConfig, tmp_path: Path) -> str:
    """Random weights, saved."""
    torch.manual_seed(1)
    path = tmp_path / "weights.pth"
    torch.save({"model": instantiate(cfg.model).state_dict()}, path)
    return str(path)


@pytest.fixture
def image(cfg: DictConfig) -> np.ndarray:
    """A test image in BGR order, wider than high."""
    image = cv2.imread(str(Path(cfg.dataset.test.image_root, "000.png")))
    return np.ascontiguousarray(image[:48])


def test_three_lines(tiny_config: Path, weights: str, image: np.ndarray) -> None:
    cfg = LazyConfig.load(str(tiny_config))
    predictor = LazyPredictor(cfg, weights)
    instances = predictor(image)["instances"]
    assert instances.image_size == (48, 64)
    assert instances.pred_masks.shape[1:] == (48, 64)
    assert not instances.scores.requires_grad
    assert not predictor.model.training


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_equals_the_test_loader(cfg: DictConfig, weights: str, image_format: str) -> None:
    cfg.model.input_format = image_format
    predictor = LazyPredictor(cfg, weights)
    sample = next(iter(instantiate(cfg.dataloader.test)))[0]
    with torch.no_grad():
        expected = predictor.model([sample])[0]["instances"]
    actual = predictor(cv2.imread(sample["file_name"]))["instances"]
    assert len(expected) > 0
    torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(actual.scores, expected.scores)
    assert torch.equal(actual.pred_masks, expected.pred_masks)


@pytest.mark.parametrize("size", [(1, 600), (600, 1), (1, 5000), (1, 1)])
def test_thin_images(cfg: DictConfig, weights: str, size: tuple[int, int]) -> None:
    instances = LazyPredictor(cfg, weights)(np.zeros((*size, 3), np.uint8))["instances"]
    assert instances.image_size == size


def test_a_batch_of_different_sizes(cfg: DictConfig, weights: str, image: np.ndarray) -> None:
    predictor = LazyPredictor(cfg, weights)
    tall = np.ascontiguousarray(image.transpose(1, 0, 2))
    outputs = predictor.predict([image, tall])
    assert [o["instances"].image_size for o in outputs] == [(48, 64), (64, 48)]
    assert predictor.predict([]) == []


def test_weights_are_taken_from_the_config(cfg: DictConfig, weights: str) -> None:
    with pytest.raises(ValueError, match=r"no weights.*train\.init_checkpoint="):
        LazyPredictor(cfg)
    with pytest.raises(ValueError, match="do not exist"):
        LazyPredictor(cfg, "/nowhere/weights.pth")
    assert isinstance(LazyPredictor(cfg, ""), LazyPredictor)
    cfg.train.init_checkpoint = weights
    first, second = LazyPredictor(cfg), LazyPredictor(cfg, weights)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


def test_weights_of_another_number_of_classes(cfg: DictConfig, tmp_path: Path) -> None:
    cfg.dataset.num_classes = 80
    path = tmp_path / "coco.pth"
    torch.save({"model": instantiate(cfg.model).state_dict()}, path)
    cfg.dataset.num_classes = 10
    message = r"coco\.pth is of another model: 6 of .*cls_score\.weight is \(81, 16\) in"
    with pytest.raises(ValueError, match=message):
        LazyPredictor(cfg, str(path))


def test_home_folder_and_missing_gpu(cfg: DictConfig, weights: str, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(Path(weights).parent))
    LazyPredictor(cfg, "~/weights.pth")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no GPU"):
        LazyPredictor(cfg, weights, device="cuda")


def test_class_names(cfg: DictConfig) -> None:
    assert LazyPredictor(cfg, "").metadata.thing_classes == ["class0", "class1"]
    cfg.dataset.test.json_file = cfg.dataset.test.image_root = None
    assert LazyPredictor(cfg, "").metadata.thing_classes[0] == "person"  # coco_2017_val
    cfg.dataset.test.json_file = "/nowhere.json"
    assert LazyPredictor(cfg, "").metadata.get("thing_classes") is None
    cfg.dataset.test.json_file = __file__  # not json
    assert LazyPredictor(cfg, "").metadata.get("thing_classes") is None


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "image.png",
        np.zeros((4, 4), dtype=np.uint8),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((4, 4, 3), dtype=np.float32),
        np.zeros((0, 4, 3), dtype=np.uint8),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
    ],
)
def test_bad_images(cfg: DictConfig, bad: object) -> None:
    with pytest.raises(ValueError, match="image"):
        LazyPredictor(cfg, "")(bad)


def test_bad_image_format(cfg: DictConfig) -> None:
    cfg.model.input_format = "L"
    with pytest.raises(ValueError, match=r"image_format.*'L'"):
        LazyPredictor(cfg, "")
