"""Small Mask2Formers through the training loop, the evaluation, the predictor and the pictures."""

import json
from pathlib import Path

import cv2
import detectron2.data.transforms as T
import numpy as np
import pytest
from coco_samples import make_content as make_instances
from coco_samples import write_coco
from detectron2.config import LazyCall as L
from omegaconf import DictConfig
from panoptic_samples import NAMES, make_content, some_ids, write_panoptic, write_things
from project_configs import PANOPTIC_CONFIGS, load, shrink_mask2former, shrink_windows

from vitadapter.data.panoptic.maps import read_panoptic_png, rgb_to_id
from vitadapter.data.transforms import PadToSize
from vitadapter.engine.prediction_files import FoundWriter, InputFiles
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.engine.trainer import do_train
from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.predictions import Selection, class_names

PATHS = {path.stem: path for path in PANOPTIC_CONFIGS}
SIZE = 64  # pixels

pytestmark = pytest.mark.usefixtures("restored_logging")


def small(name: str, tmp_path: Path) -> DictConfig:
    """An experiment, cut down, with large-scale jitter of `SIZE` pixels."""
    cfg = load(PATHS[name])
    cfg.model.backbone = load(PATHS["mask2former_vit_adapter_l_beitv2_3x"]).model.backbone
    net = cfg.model.backbone.net
    net.update(embed_dim=32, depth=4, num_heads=2, window_block_indexes=[0, 2])
    cfg.model.backbone.update(deform_num_heads=4, norm="BN")
    shrink_windows(net)
    shrink_mask2former(cfg)
    loader = cfg.dataloader
    loader.train.mapper.augmentations = [
        L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=SIZE, target_width=SIZE),
        L(T.RandomCrop)(crop_type="absolute", crop_size=(SIZE, SIZE)),
        L(PadToSize)(size=(SIZE, SIZE), pixel_value="${model.pixel_mean}"),
    ]
    loader.test.mapper.augmentations[0].update(short_edge_length=48, max_size=80)
    loader.train.update(total_batch_size=2, num_workers=0)
    loader.test.num_workers = 0
    cfg.lr_multiplier.warmup_iters = 1
    cfg.train.update(
        max_iter=2,
        log_period=1,
        device="cpu",
        init_checkpoint="",
        output_dir=str(tmp_path / "output"),
    )
    return cfg


def test_panoptic(tmp_path: Path) -> None:
    maps = {name: some_ids(seed) for seed, name in enumerate("abcd")}
    files = write_panoptic(tmp_path, maps)
    things = write_things(tmp_path / "things.json", make_content(maps), list(maps.values()))
    cfg = small("mask2former_vit_adapter_s_dinov3_frozen_lsj_50ep", tmp_path)
    cfg.dataset.update(num_classes=4, num_things=2)
    for part in ("train", "test"):
        cfg.dataset[part].update(**files._asdict())
    cfg.dataset.test.instances_json = things
    cfg.model.panoptic_inference.update(score_threshold=0.0, overlap_threshold=0.0)

    results = do_train(cfg)
    output = tmp_path / "output"
    assert set(results) == {"panoptic_seg", "bbox", "segm"}
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert {"loss_ce", "loss_mask", "loss_dice_1"} <= set(rows[0])
    assert rows[-1]["panoptic_seg/PQ"] == pytest.approx(results["panoptic_seg"]["PQ"])
    assert "| sky" in (output / "inference/panoptic_results.md").read_text()

    predictor = LazyPredictor(cfg, str(output / "model_final.pth"))
    assert predictor.metadata.stuff_classes == NAMES
    image = cv2.imread(str(tmp_path / "images/a.jpg"))
    prediction = predictor(image)
    ids, segments = prediction["panoptic_seg"]
    assert ids.shape == (48, 64)
    assert segments
    files = InputFiles(tmp_path / "drawn.png", maps=tmp_path / "map.png")
    palette = Palette(class_names(predictor.metadata))
    with FoundWriter.open(files, tmp_path, Path("a.jpg"), palette, {}) as writer:
        writer.add(image, Selection()(prediction))
    assert (cv2.imread(str(files.picture))[:48] != image).any()
    np.testing.assert_array_equal(rgb_to_id(read_panoptic_png(str(files.maps))), ids)


def test_instances(tmp_path: Path) -> None:
    json_file, image_root = write_coco(tmp_path, make_instances(masks="mixed"))
    cfg = small("mask2former_instance_vit_adapter_s_dinov3_frozen_lsj_50ep", tmp_path)
    cfg.dataset.num_classes = 2
    for part in ("train", "test"):
        cfg.dataset[part].update(json_file=json_file, image_root=image_root)
    results = do_train(cfg)
    assert set(results) == {"bbox", "segm"}
    assert {"AP", "AP-class0", "AP-class1"} <= set(results["segm"])
