"""Segmentation experiments are complete, and one of each kind trains and predicts when cut down."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from project_configs import SEGMENTATION_CONFIGS, load, net_wrapper

SIZE = 64  # pixels
KINDS = (
    "upernet_vit_adapter_t_deit_160k",
    "upernet_vit_adapter_b_augreg_160k",
    "upernet_vit_adapter_light_b_deit_160k",
    "upernet_vit_adapter_l_uniperceiver_160k",
    "upernet_vit_adapter_l_beit_160k",
    "upernet_vit_l_beit_512_160k",
    "upernet_vit_s_dinov2_finetune",
    "semantic_fpn_vit_t_deit_80k",
    "semantic_fpn_vit_adapter_l_augreg_frozen_80k",
    "mask2former_vit_adapter_l_beit_896_80k",
    "mask2former_vit_s_dinov2_finetune",
)
PATHS = {path.stem: path for path in SEGMENTATION_CONFIGS}


@pytest.mark.parametrize("path", SEGMENTATION_CONFIGS[::5], ids=lambda path: path.stem)
def test_has_what_the_training_script_reads(path: Path) -> None:
    cfg = load(path)
    assert {"model", "dataset", "dataloader", "optimizer", "lr_multiplier", "train"} <= set(cfg)
    assert {"train", "test", "evaluator"} <= set(cfg.dataloader)
    assert Path(cfg.train.output_dir) == Path("output", path.parent.name, path.stem)
    assert cfg.dataloader.evaluator.output_dir.startswith(cfg.train.output_dir)


def shrink(cfg: DictConfig) -> DictConfig:
    """Cuts a segmenter down in place: 32 channels, four blocks, crops of `SIZE` pixels."""
    cfg.dataset.crop.update(size=SIZE, stride=SIZE // 2)
    wrapper = net_wrapper(cfg)
    wrapper.net.update(embed_dim=32, depth=4, num_heads=2)
    if "block_indexes" in wrapper:
        wrapper.block_indexes = [0, 1, 2, 3]
    if "deform_num_heads" in wrapper:
        wrapper.deform_num_heads = 4
    head = cfg.model.sem_seg_head
    if "pixel_decoder" in head:
        head.pixel_decoder.update(embed_dim=32, num_heads=4, ffn_dim=32, num_layers=1)
        head.predictor.update(num_layers=2, ffn_dim=32, num_queries=8)
        cfg.model.criterion.matcher.num_points = 64
    elif "head" in head:
        head.head.channels = 16
        head.auxiliary_head.channels = 16
    else:
        cfg.model.backbone.out_channels = 32
        head.conv_dims = 32
    return cfg


def batch(cfg: DictConfig) -> list[dict[str, object]]:
    """Two random images with labels, a part of them ignored."""
    rng = np.random.default_rng(0)
    records = []
    for _ in range(2):
        labels = rng.integers(0, cfg.dataset.num_classes, (SIZE // 8, SIZE // 8)).repeat(8, 0)
        labels = labels.repeat(8, 1)
        labels[:5] = cfg.dataset.ignore_label
        pixels = rng.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)
        records.append({"image": torch.as_tensor(pixels), "sem_seg": torch.as_tensor(labels)})
    return records


@pytest.mark.parametrize("name", KINDS)
def test_trains_and_predicts(name: str) -> None:
    torch.manual_seed(0)
    cfg = shrink(load(PATHS[name]))
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with EventStorage():
        losses = model(batch(cfg))
    sum(losses.values()).backward()
    optimizer.step()
    for parameter, value in model.named_parameters():
        assert value.isfinite().all(), parameter
        if not value.requires_grad:
            assert torch.equal(value, before[parameter]), parameter
    model.eval()
    wide = torch.zeros(3, SIZE, SIZE + 40, dtype=torch.uint8)
    with torch.no_grad():
        (output,) = model([{"image": wide, "height": 50, "width": 80}])
    assert output["sem_seg"].shape == (cfg.dataset.num_classes, 50, 80)
    assert output["sem_seg"].isfinite().all()
