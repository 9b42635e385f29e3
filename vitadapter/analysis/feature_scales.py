"""How large the features of a net are beside the maps of the adapter that they are added to."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig
from torch import Tensor

from vitadapter.analysis.features import normalised_image
from vitadapter.data.image_files import read_image
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.modeling.backbone import ViTAdapter
from vitadapter.visualization.markdown import markdown_table

__all__ = ["FeatureScale", "feature_scales", "scale_table", "scale_warnings", "scales_of_config"]

_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class FeatureScale:
    """Standard deviations of what becomes one output, each the median over the channels.

    Attributes:
        output: its name, such as "res2".
        adapter: of the adapter's map.
        vit: of the ViT's map, after `feature_norm`.
    """

    output: str
    adapter: float
    vit: float

    @property
    def is_drowned(self) -> bool:
        """Whether the ViT's map is below a tenth of what it is added to."""
        return self.vit < _LEAST_SHARE * self.adapter


@torch.no_grad()
def feature_scales(backbone: ViTAdapter, batches: Iterable[Tensor]) -> list[FeatureScale]:
    """Measures the maps that `ViTAdapter` adds up, over all pixels of all images.

    Args:
        backbone: with its pre-trained net. It is run in evaluation mode.
        batches: normalised images (B, 3, H, W).

    Returns:
        One for each output, finest first.

    Raises:
        ValueError: there are no images, or the backbone adds no features (`vit_feature=None`).
    """
    if backbone.vit_feature is None:
        raise ValueError("vit_feature=None adds no features of the net, so there are no scales")
    was_training = backbone.training
    backbone.eval()
    sums: list[tuple[_Moments, _Moments]] = []
    for images in batches:
        own, vit = backbone.forward_maps(images)
        sums = sums or [(_Moments(), _Moments()) for _ in own]
        for (own_moments, vit_moments), own_map, vit_map in zip(sums, own, vit, strict=True):
            own_moments.add(own_map)
            vit_moments.add(cast(Tensor, vit_map))
    backbone.train(was_training)
    if not sums:
        raise ValueError("at least one batch of images is needed, got none")
    names = backbone.output_shape()
    return [
        FeatureScale(name, adapter.median_std(), vit.median_std())
        for name, (adapter, vit) in zip(names, sums, strict=True)
    ]


def scales_of_config(cfg: DictConfig, images: Sequence[Path]) -> list[FeatureScale]:
    """Measures the scales at the start of a training, with the weights of `train.init_checkpoint`.

    Args:
        cfg: the whole config. Images are resized as in its tests.
        images: image files.

    Raises:
        ValueError: the model has no `ViTAdapter`, an image cannot be read, the weights do not fit,
            or see `feature_scales`.
    """
    predictor = LazyPredictor(cfg, cfg.train.init_checkpoint, complete=False)
    adapters = [part for part in predictor.model.modules() if isinstance(part, ViTAdapter)]
    if len(adapters) != 1:
        raise ValueError(
            f"scales of features need a model with one ViTAdapter, this one has {len(adapters)}"
        )
    return feature_scales(
        adapters[0],
        (
            normalised_image(predictor, read_image(str(path), predictor.array_format)).tensor
            for path in images
        ),
    )


class _Moments:
    """Sums of values and of their squares, by channel, in float64."""

    def __init__(self) -> None:
        self.number = 0
        self.sums = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, maps: Tensor) -> None:
        values = maps.double().transpose(0, 1).flatten(1)  # (C, B * H * W)
        self.number += values.shape[1]
        self.sums = self.sums + values.sum(1)
        self.squares = self.squares + values.square().sum(1)

    def median_std(self) -> float:
        mean = self.sums / self.number
        variance = self.squares / self.number - mean.square()
        return statistics.median(variance.clamp(min=0).sqrt().tolist())


def scale_table(scales: Iterable[FeatureScale]) -> str:
    """The figures as a Markdown table."""
    rows = [["output", "adapter", "ViT", "ViT / adapter"]]
    for scale in scales:
        share = f"{scale.vit / scale.adapter:.3f}" if scale.adapter else "-"
        rows.append([scale.output, f"{scale.adapter:.3f}", f"{scale.vit:.3f}", share])
    return markdown_table(rows)


def scale_warnings(scales: Iterable[FeatureScale]) -> list[str]:
    """What to do about outputs to which the net's features add next to nothing."""
    return [
        f"{scale.output}: the ViT's features ({scale.vit:.3g}) are below a tenth of what they are "
        f'added to ({scale.adapter:.3g}); feature_norm="net" or "LN" normalises them first'
        for scale in scales
        if scale.is_drowned
    ]
