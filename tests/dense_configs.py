"""Experiments of dense detectors, cut down to train fast; see project_configs.py."""

from omegaconf import DictConfig
from project_configs import _CHANNELS, _shrink_net, net_wrapper


def shrink_dense(cfg: DictConfig) -> DictConfig:
    """Cuts an ATSS or GFL down in place, as `project_configs.shrink` does a Mask R-CNN."""
    _shrink_net(net_wrapper(cfg))
    model = cfg.model
    model.backbone.out_channels = _CHANNELS
    # Group norm of one channel and one pixel would be undefined.
    model.head.conv_dims = [2 * _CHANNELS, 2 * _CHANNELS]
    # Untrained scores are about 0.01.
    model.test_score_thresh = 0.0
    model.test_topk_candidates = 100
    return cfg
