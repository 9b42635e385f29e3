"""Images of any number of channels: what follows from the pixel statistics of a model."""

import inspect
import logging
from collections.abc import Iterator

from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf

from vitadapter.data.channel_files import MAX_CHANNELS

__all__ = ["apply_channels"]

logger = logging.getLogger(__name__)

_COLOURS = 3


def _nets(node: object) -> Iterator[DictConfig]:
    """The parts of a config whose class takes `in_chans`."""
    if not isinstance(node, DictConfig | ListConfig):
        return
    if isinstance(node, DictConfig) and (target := node.get("_target_")) is not None:
        target = locate(target) if isinstance(target, str) else target
        if "in_chans" in inspect.signature(target).parameters:
            yield node
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        if not OmegaConf.is_interpolation(node, key):
            yield from _nets(node[key])


def _set_net(cfg: DictConfig, channels: int) -> None:
    nets = list(_nets(cfg.model.get("backbone")))
    if not nets:
        raise ValueError(
            f"model.pixel_mean has {channels} values, but model.backbone has no net that takes "
            "in_chans, the channels of images"
        )
    for net in nets:
        if net.get("in_chans", _COLOURS) not in (_COLOURS, channels):
            raise ValueError(
                f"in_chans={net.in_chans} of the net must be {channels}, the number of values of "
                "model.pixel_mean"
            )
        net.in_chans = channels


def apply_channels(cfg: DictConfig) -> None:
    """Makes a config in place read and take as many channels as `model.pixel_mean` has values.

    Three values stand for colours, unless `image_format` says 3. For any other number, `in_chans`
    of the net, `model.input_format` and `image_format` of both mappers become that number.

    Args:
        cfg: the whole config; one without `model.pixel_mean` stays as it is.

    Raises:
        ValueError: `model.pixel_std` has another length, there are too many channels, or the
            config says something else of them.
    """
    means = OmegaConf.select(cfg, "model.pixel_mean")
    if not isinstance(means, ListConfig):
        return
    channels, deviations = len(means), OmegaConf.select(cfg, "model.pixel_std")
    if not isinstance(deviations, ListConfig) or len(deviations) != channels:
        raise ValueError(
            "model.pixel_mean and model.pixel_std must have a value for each channel of the "
            f"images, got {list(means)} and {deviations}"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(
            f"model.pixel_mean must have 1 to {MAX_CHANNELS} values, one for each channel of the "
            f"images, got {channels}"
        )
    if channels == _COLOURS:
        return
    _set_net(cfg, channels)
    if "input_format" in cfg.model:
        cfg.model.input_format = channels
    for role in ("train", "test"):
        mapper = OmegaConf.select(cfg, f"dataloader.{role}.mapper")
        if isinstance(mapper, DictConfig) and "image_format" in mapper:
            mapper.image_format = channels
    logger.info("model.pixel_mean has %d values: images are read with so many channels", channels)
