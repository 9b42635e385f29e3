"""Experiments of dense detectors and Sparse R-CNN, cut down to train fast."""

from omegaconf import DictConfig
from project_configs import CHANNELS, CONFIGS, load, net_wrapper, shrink_net

DETECTORS = ("atss", "gfl", "sparse_rcnn")


def dense_config(detector: str, net: str = "vit_adapter") -> DictConfig:
    """The experiment of one of `DETECTORS` with ViT-Adapter-S, or "vit", to change at will."""
    return load(next(p for p in CONFIGS if p.stem == f"{detector}_{net}_s_deit_3x"))


def shrink_dense(cfg: DictConfig) -> DictConfig:
    """Cuts an ATSS, GFL or Sparse R-CNN down in place, as `project_configs.shrink` the others."""
    shrink_net(net_wrapper(cfg))
    model = cfg.model
    model.backbone.out_channels = CHANNELS
    if "box_heads" in model:
        model.num_proposals = 20
        model.box_heads = model.box_heads[:2]
        for head in model.box_heads:
            head.update(feedforward_dim=64, dynamic_dim=8)
        return cfg
    # Group norm of one channel and one pixel would be undefined.
    model.head.conv_dims = [2 * CHANNELS, 2 * CHANNELS]
    # Untrained scores are about 0.01.
    model.test_score_thresh = 0.0
    model.test_topk_candidates = 100
    return cfg
