"""The experiments of projects/ViTAdapter: found, built without memory, cut down to train fast."""

import functools
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from vitadapter.engine.inference import apply_tta
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.settings import check_settings
from vitadapter.model_zoo import load_experiment
from vitadapter.model_zoo.trained_models import FLIP, TTA

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "ViTAdapter"
ALL_CONFIGS = sorted(PROJECT.glob("configs/*/*.py"))
_SEGMENTERS = ("mask2former_", "semantic_fpn_", "setr_", "upernet_")
# Mask2Former of panoptic and of instance segmentation.
PANOPTIC_CONFIGS = [
    path
    for path in ALL_CONFIGS
    if path.match("COCOPanoptic/*") or path.match("COCO/mask2former_instance_*")
]
SEGMENTATION_CONFIGS = [
    path
    for path in ALL_CONFIGS
    if path.stem.startswith(_SEGMENTERS) and path not in PANOPTIC_CONFIGS
]
CONFIGS = [path for path in ALL_CONFIGS if not path.stem.startswith(_SEGMENTERS)]

# How the zoo's rows test the weights of an experiment beside its own test: the overrides that they
# name, by what these tests append to the experiment's name.
TESTS = {"_ms": TTA, "_flip": FLIP}
# The same for experiments that differ from another in keys, as in the paper's tables 6 and 7.
_ADAPTER = "model.backbone.bottom_up"
_ATTENTION = f"{_ADAPTER}.attention=vitadapter.modeling.backbone"
VARIANTS = {f"_n{n}": f"{_ADAPTER}.num_interactions={n}" for n in (1, 2, 6)} | {
    "_global": f"{_ATTENTION}.GlobalAttention {_ADAPTER}.use_act_checkpoint=True",
    "_cswin": f"{_ATTENTION}.CSwinAttention",
    "_pale": f"{_ATTENTION}.PaleAttention",
}
ROW_OVERRIDES = TESTS | VARIANTS

# Environment variable with the folder of configs that the processes of a suite share.
SHARED_CONFIGS = "VITADAPTER_TESTS_SHARED_CONFIGS"

CHANNELS = 32  # the ViT baseline's GroupNorm has 32 groups


def split_test(name: str) -> tuple[str, str]:
    """An experiment's name, and the key of `TESTS` that ends `name`, "" where none does."""
    suffix = next((suffix for suffix in TESTS if name.endswith(suffix)), "")
    return name.removesuffix(suffix), suffix


def load(path: Path, test: str = "") -> DictConfig:
    """An experiment as `--eval-only` runs it with the overrides of a key of `ROW_OVERRIDES`."""
    return pickle.loads(_pickled(path, test))


@functools.cache
def _pickled(path: Path, test: str) -> bytes:
    """Loading takes half a second, and there are thousands of loads in the suite.

    The processes of a suite share what they have loaded, see `tests/conftest.py`.
    """
    folder = os.environ.get(SHARED_CONFIGS)
    shared = folder and Path(folder, f"{path.parent.name}-{path.stem}{test}.pickle")
    if shared and shared.is_file():
        return shared.read_bytes()
    cfg = apply_overrides(load_experiment(path), ROW_OVERRIDES[test].split() if test else [])
    apply_tta(cfg)
    check_settings(cfg)
    pickled = pickle.dumps(cfg)
    if shared:
        shared.parent.mkdir(exist_ok=True)
        partial = shared.with_suffix(f".{os.getpid()}")
        partial.write_bytes(pickled)
        partial.replace(shared)
    return pickled


def net_wrapper(cfg: DictConfig) -> DictConfig:
    """The part of a config that holds `net`: below necks, or ViTDet's feature pyramid itself."""
    wrapper = cfg.model.backbone
    while "net" not in wrapper:
        wrapper = wrapper.bottom_up
    return wrapper


@functools.cache
def full_size_model(path: Path, variant: str = "") -> nn.Module:
    """The model of a config with parameters on the meta device; do not change it.

    `variant` is a key of `VARIANTS`, or "" for the config as it is.
    """
    with torch.device("meta"):
        return instantiate(load(path, variant).model)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shrink(cfg: DictConfig) -> DictConfig:
    """Cuts an R-CNN down in place: 32 channels everywhere, eight blocks.

    Of each quarter of the net its first and its last block stay, with what the config says of
    them (window, residual block, output of the baseline). In the nets of the paper these are a
    windowed and a global one.

    Returns:
        `cfg` itself.
    """
    shrink_net(net_wrapper(cfg))
    cfg.model.backbone.out_channels = CHANNELS
    cfg.model.proposal_generator.head.in_channels = CHANNELS
    _shrink_roi_heads(cfg.model.roi_heads)
    return cfg


def _shrink_roi_heads(roi_heads: DictConfig) -> None:
    roi_heads.batch_size_per_image = 32
    for box_head in heads_of(roi_heads, "box_head"):
        box_head.input_shape.channels = CHANNELS
        box_head.conv_dims = [CHANNELS] * min(1, len(box_head.conv_dims))
        box_head.fc_dims = [CHANNELS] * len(box_head.fc_dims)
    for box_predictor in heads_of(roi_heads, "box_predictor"):
        box_predictor.input_shape.channels = CHANNELS
        # Untrained scores are about 1 / (classes + 1).
        box_predictor.test_score_thresh = 0.0
    for mask_head in heads_of(roi_heads, "mask_head"):
        mask_head.input_shape.channels = CHANNELS
        mask_head.conv_dims = [CHANNELS, CHANNELS]
    if "semantic_head" in roi_heads:
        roi_heads.semantic_head.update(in_channels=CHANNELS, conv_dim=CHANNELS)


def heads_of(roi_heads: DictConfig, name: str) -> Sequence[DictConfig]:
    """Heads of a kind, such as "box_head": one, or one for each stage of a cascade, or none."""
    if f"{name}s" in roi_heads:
        return roi_heads[f"{name}s"]
    return [] if roi_heads[name] is None else [roi_heads[name]]


def shrink_mask2former(cfg: DictConfig) -> None:
    """Cuts down all of a Mask2Former but its backbone in place."""
    head = cfg.model.sem_seg_head
    head.pixel_decoder.update(embed_dim=CHANNELS, num_heads=4, ffn_dim=32, num_layers=1)
    head.predictor.update(num_layers=2, ffn_dim=32, num_queries=8)
    cfg.model.criterion.matcher.num_points = 64


def shrink_windows(net: DictConfig) -> None:
    """Windows that are padded in images of 64 pixels, but not to many times their size."""
    for key, side in (("window_size", 3), ("global_window_size", 6)):
        if net.get(key):
            net[key] = side


def shrink_net(wrapper: DictConfig) -> None:
    """Cuts down the net of a backbone and the adapter in place: see :func:`shrink`."""
    net = wrapper.net
    shrink_windows(net)
    quarter = net.depth // 4
    kept = [block for i in range(4) for block in (i * quarter, (i + 1) * quarter - 1)]
    net.depth = len(kept)
    net.embed_dim, net.num_heads = CHANNELS, 2
    net.window_block_indexes = _renumber(net.window_block_indexes, kept)
    if net.get("layer_scale_init"):
        net.layer_scale_init = 1.0  # at BEiT's 1e-6 a step would be lost in rounding
    if "residual_block_indexes" in net:  # not of BEiT and Uni-Perceiver
        net.residual_block_indexes = _renumber(net.residual_block_indexes, kept)
    if "block_indexes" in wrapper:
        wrapper.block_indexes = _renumber(wrapper.block_indexes, kept)
    if "deform_num_heads" in wrapper:
        wrapper.deform_num_heads = 4


def _renumber(blocks: Sequence[int], kept: list[int]) -> list[int]:
    return [new for new, old in enumerate(kept) if old in blocks]
