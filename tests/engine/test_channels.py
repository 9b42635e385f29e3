"""Detectors and segmenters of five channels: trained, evaluated and used."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from channel_samples import MEAN, OVERRIDES, some_channels, write_label_maps, write_objects
from detectron2.config import instantiate
from omegaconf import DictConfig
from project_configs import PROJECT, load, shrink
from timm.models import adapt_input_conv

from vitadapter.commands import predict
from vitadapter.data.transforms import PadToSize
from vitadapter.engine.channels import apply_channels
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.trainer import do_train
from vitadapter.modeling.inference import Tiles

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture
def detector(tmp_path: Path) -> DictConfig:
    cfg = shrink(load(PROJECT / "configs/COCO/mask_rcnn_vit_adapter_t_deit_1x.py"))
    cfg.model.backbone.bottom_up.norm = "GN"
    cfg.dataset.num_classes = 2
    cfg.model.roi_heads.box_predictor.test_topk_per_image = 5
    cfg.dataloader.train.update(total_batch_size=2, num_workers=0)
    cfg.dataloader.test.num_workers = 0
    cfg.dataloader.evaluator.plot_curves = False
    cfg.dataloader.train.mapper.augmentations[0].short_edge_length = [64]
    cfg.dataloader.test.mapper.augmentations[0].short_edge_length = 96
    cfg.lr_multiplier.warmup_iters = 1
    cfg.train.update(
        max_iter=2, log_period=1, device="cpu", output_dir=str(tmp_path / "out"), init_checkpoint=""
    )
    return apply_overrides(cfg, [*write_objects(tmp_path), *OVERRIDES])


def test_a_detector(detector: DictConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    results = do_train(detector)
    assert results.keys() == {"bbox", "segm"}
    weights = str(tmp_path / "out" / "model_final.pth")
    predictor = LazyPredictor(weights)
    assert predictor.array_format == 5
    assert predictor.model.backbone.bottom_up.spm.stem[0].in_channels == 5
    image = some_channels(0, (64, 64))
    found = predictor(image)["instances"]
    assert len(found) > 0
    torch.testing.assert_close(predictor(image.astype(float))["instances"].scores, found.scores)
    assert len(LazyPredictor(weights, tiles=Tiles(40))(image)["instances"]) > 0
    with pytest.raises(ValueError, match=r"a \(H, W, 5\) array of numbers, got \(64, 64, 3\)"):
        predictor(image[..., :3])

    source, output = tmp_path / "images" / "0.npy", tmp_path / "predictions"
    shown = ["--score-threshold", "0", "--json", "--output", str(output)]
    assert predict.predict([weights, str(source), *shown]) == 0
    assert cv2.imread(str(output / "0.png")).shape == (64, 64, 3)
    assert len(json.loads((output / "predictions.json").read_text())) == len(found)


def test_a_segmenter(tmp_path: Path) -> None:
    cfg = load(PROJECT / "configs/Digits/upernet_vit_adapter_t.py")
    apply_overrides(cfg, [*write_label_maps(tmp_path), *OVERRIDES])
    cfg.dataset.update(num_classes=3, class_names=None)
    cfg.dataset.resize.update(short=32, long=48)
    cfg.dataset.crop.update(size=32, stride=16)
    cfg.dataloader.train.update(total_batch_size=2, num_workers=0)
    cfg.dataloader.test.num_workers = 0
    cfg.model.backbone.net.update(embed_dim=32, depth=4, num_heads=2, pretrain_img_size=32)
    cfg.model.backbone.deform_num_heads = 4
    cfg.model.sem_seg_head.head.channels = 16
    cfg.model.sem_seg_head.auxiliary_head.channels = 8
    cfg.lr_multiplier.warmup_iters = 1
    cfg.train.update(max_iter=2, log_period=1, device="cpu", output_dir=str(tmp_path / "output"))
    with pytest.raises(ValueError, match=r"ColorAugSSDTransform changes colours, but .* 5 channel"):
        do_train(cfg.copy())
    colours = next(
        index
        for index, part in enumerate(cfg.dataloader.train.mapper.augmentations)
        if "ColorAugSSDTransform" in str(part._target_)
    )
    apply_overrides(cfg, [f"~dataloader.train.mapper.augmentations.{colours}"])
    assert "mIoU" in do_train(cfg)["sem_seg"]
    predictor = LazyPredictor(str(tmp_path / "output" / "model_final.pth"), tiles=Tiles(24))
    assert predictor(some_channels(0, (32, 48)))["label_map"].shape == (32, 48)


def test_pretrained_weights_of_three_channels(detector: DictConfig, tmp_path: Path) -> None:
    """The kernels of the net are repeated and scaled, as timm does."""
    net = instantiate(detector.model.backbone.bottom_up.net)
    state = {key: torch.randn_like(value) for key, value in net.state_dict().items()}
    torch.save({"model": state}, tmp_path / "net.pth")
    predictor = LazyPredictor(detector, str(tmp_path / "net.pth"), complete=False)
    loaded = predictor.model.backbone.bottom_up.net.state_dict()
    kernel = "patch_embed.proj.weight"
    torch.testing.assert_close(loaded.pop(kernel), adapt_input_conv(5, state.pop(kernel)))
    for name, value in loaded.items():
        if value.shape == state[name].shape and "pos_embed" not in name:
            torch.testing.assert_close(value, state[name])


def test_what_follows_from_the_statistics(detector: DictConfig) -> None:
    for _ in range(2):  # the second time changes nothing
        apply_channels(detector)
        assert detector.model.backbone.bottom_up.net.in_chans == 5
        assert detector.model.input_format == 5
        assert detector.dataloader.train.mapper.image_format == 5
        assert detector.dataloader.test.mapper.image_format == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.pixel_std=[1,1]"], r"a value for each channel .*got \[100\.0.*\[1, 1\]"),
        ([f"model.pixel_{key}={[1] * 17}" for key in ("mean", "std")], r"1 to 16 values.*got 17"),
        (["model.backbone.bottom_up.net.in_chans=4"], r"in_chans=4 of the net must be 5"),
    ],
)
def test_contradictions(detector: DictConfig, overrides: list[str], message: str) -> None:
    apply_overrides(detector, [text.replace(" ", "") for text in overrides])
    with pytest.raises(ValueError, match=message):
        apply_channels(detector)


def test_a_backbone_of_colours_alone(cfg: DictConfig) -> None:
    apply_overrides(cfg, OVERRIDES)
    with pytest.raises(ValueError, match=r"has 5 values, but model\.backbone has no net"):
        LazyPredictor(cfg, "")


def test_float_padding_is_the_mean() -> None:
    image = np.zeros((2, 2, 5), np.float32)
    mean = [value / 1000 for value in MEAN]
    padded = PadToSize((3, 3), mean).get_transform(image).apply_image(image)
    np.testing.assert_allclose(padded[2, 2], mean)


def test_images_of_more_channels_than_the_model_are_refused_before_training(
    detector: DictConfig, tmp_path: Path
) -> None:
    overrides = ["model.pixel_mean=[1,2,3,4]", "model.pixel_std=[1,1,1,1]"]
    message = "0.npy.* it has 5 channels, but model.pixel_mean has 4 values"
    with pytest.raises(SetupError, match=message):
        do_train(apply_overrides(detector, overrides))
    assert not list((tmp_path / "out").glob("*.pth"))
