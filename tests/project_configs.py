"""The experiments of projects/ViTAdapter: found, built without memory, cut down to train fast."""

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig
from torch import nn

PROJECT = Path(__file__).resolve().parents[1] / "projects" / "ViTAdapter"
_ALL = sorted(PROJECT.glob("configs/*/*.py"))
_SEGMENTERS = ("mask2former_", "semantic_fpn_", "upernet_")
SEGMENTATION_CONFIGS = [path for path in _ALL if path.stem.startswith(_SEGMENTERS)]
CONFIGS = [path for path in _ALL if not path.stem.startswith(_SEGMENTERS)]

_CHANNELS = 32  # the ViT baseline's GroupNorm has 32 groups


def load(path: Path) -> DictConfig:
    return LazyConfig.load(str(path))


def net_wrapper(cfg: DictConfig) -> DictConfig:
    """The part of a config that holds `net`: below an FPN, or ViTDet's feature pyramid itself."""
    return cfg.model.backbone.get("bottom_up", cfg.model.backbone)


@functools.cache
def full_size_model(path: Path) -> nn.Module:
    """The model of a config with parameters on the meta device; do not change it."""
    with torch.device("meta"):
        return instantiate(load(path).model)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shrink(cfg: DictConfig) -> DictConfig:
    """Cuts a Faster or Mask R-CNN down in place: 32 channels everywhere, eight blocks.

    Of each quarter of the net its first and its last block stay, with what the config says of
    them (window, residual block, output of the baseline). In the nets of the paper these are a
    windowed and a global one.

    Returns:
        `cfg` itself.
    """
    _shrink_net(net_wrapper(cfg))
    cfg.model.backbone.out_channels = _CHANNELS
    cfg.model.proposal_generator.head.in_channels = _CHANNELS
    roi_heads = cfg.model.roi_heads
    roi_heads.batch_size_per_image = 32
    roi_heads.box_head.input_shape.channels = _CHANNELS
    roi_heads.box_head.fc_dims = [_CHANNELS, _CHANNELS]
    roi_heads.box_predictor.input_shape.channels = _CHANNELS
    # Untrained scores are about 1 / (classes + 1).
    roi_heads.box_predictor.test_score_thresh = 0.0
    if roi_heads.mask_head is not None:
        roi_heads.mask_head.input_shape.channels = _CHANNELS
        roi_heads.mask_head.conv_dims = [_CHANNELS, _CHANNELS]
    return cfg


def _shrink_net(wrapper: DictConfig) -> None:
    net = wrapper.net
    quarter = net.depth // 4
    kept = [block for i in range(4) for block in (i * quarter, (i + 1) * quarter - 1)]
    net.depth = len(kept)
    net.embed_dim, net.num_heads = _CHANNELS, 2
    net.window_block_indexes = _renumber(net.window_block_indexes, kept)
    net.residual_block_indexes = _renumber(net.residual_block_indexes, kept)
    if "block_indexes" in wrapper:
        wrapper.block_indexes = _renumber(wrapper.block_indexes, kept)
    if "deform_num_heads" in wrapper:
        wrapper.deform_num_heads = 4


def _renumber(blocks: Sequence[int], kept: list[int]) -> list[int]:
    return [new for new, old in enumerate(kept) if old in blocks]
