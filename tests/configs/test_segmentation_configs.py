"""Segmentation experiments are complete, and one of each kind trains and predicts when cut down."""

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, ListConfig
from project_configs import SEGMENTATION_CONFIGS, load, net_wrapper, shrink_mask2former

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
    "setr_pup_vit_l_augreg_vpt_160k",
    "mask2former_vit_adapter_l_beit_896_80k",
    "mask2former_vit_s_dinov2_finetune",
    "mask2former_vit_adapter_l_dinov3_lora_512_80k",
)
PATHS = {path.stem: path for path in SEGMENTATION_CONFIGS}


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
        shrink_mask2former(cfg)
    elif isinstance(head.get("auxiliary_head"), ListConfig):  # SETR
        wrapper.net.depth = 24  # the names of its features are those of the blocks
        wrapper.block_indexes = [9, 14, 19, 23]
        head.head.channels = 16
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
