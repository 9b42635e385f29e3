"""The bases of configs: on ViT-Adapter they train and predict, on frozen DINOv3 the net stays."""

import pytest
import torch
from detectron2.config import instantiate
from mask2former_samples import record_of
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vitadapter.model_zoo import get_config

OUTPUTS = {
    "model": {"sem_seg"},
    "model_instance": {"instances"},
    "model_panoptic": {"instances", "panoptic_seg"},
}


def build(model: DictConfig) -> nn.Module:
    root = {"model": model, "dataset": {"num_classes": 5, "num_things": 3}}
    return instantiate(OmegaConf.create(root, flags={"allow_objects": True}).model)


@pytest.mark.parametrize("name", OUTPUTS)
def test_tasks(name: str) -> None:
    torch.manual_seed(0)
    config = get_config("common/models/mask2former_vit_adapter.py")[name]
    config.backbone.net.update(embed_dim=32, depth=4, num_heads=2, window_block_indexes=[])
    config.backbone.update(deform_num_heads=4, norm="BN")
    config.sem_seg_head.pixel_decoder.update(embed_dim=32, num_heads=2, num_layers=1, ffn_dim=16)
    config.sem_seg_head.predictor.update(num_queries=7, num_layers=3, ffn_dim=16)
    config.criterion.matcher.num_points = 64
    model = build(config)
    losses = model.train()([record_of(64, 96), record_of(50, 70, seed=1)])
    assert len(losses) == 3 * 4
    sum(losses.values()).backward()
    with torch.no_grad():
        (output,) = model.eval()([record_of(64, 96)])
    assert output.keys() == OUTPUTS[name]


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [("model", "small", 384), ("model", "base", 768), ("model_panoptic", "large", 1024)],
)
def test_frozen_dinov3(name: str, size: str, width: int) -> None:
    config = get_config("common/models/mask2former_vit_adapter.py")[name]
    adapters = get_config("common/models/timm_vit_adapter.py")
    config.backbone = adapters[f"vit_adapter_dinov3_{size}_frozen"]
    with torch.device("meta"):
        model = build(config)
    assert model.sem_seg_head.pixel_decoder.input_proj[0].in_channels == width
    parameters = dict(model.named_parameters())
    net = {key for key in parameters if key.startswith("backbone.net.")}
    assert net
    assert {key for key, p in parameters.items() if p.requires_grad} == parameters.keys() - net
    assert (model.panoptic_inference is not None) == ("panoptic" in name)
