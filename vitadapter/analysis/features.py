"""Fourier spectra and pictures of the feature maps of several models (figures 5, 7 and 8)."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from vitadapter.data.image_files import read_image, read_stored
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.visualization.feature_figures import draw_feature_maps, plot_spectra
from vitadapter.visualization.markdown import markdown_table
from vitadapter.visualization.sample_sheets import shown_image

__all__ = [
    "FREQUENCIES",
    "analyze_features",
    "feature_maps",
    "log_amplitudes",
    "normalised_image",
]

FREQUENCIES = 33
"""Number of frequencies from 0 to pi (half a period per cell) at which spectra are taken."""

# As in Park & Kim's code, so that log(0) does not occur.
_EPSILON = 1e-6


def _pyramid(model: nn.Module) -> tuple[Backbone, dict[str, int]]:
    """What makes a model's feature pyramid, below necks such as FPN; strides by output names."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, Backbone) or not hasattr(model, "pixel_mean"):
        raise ValueError(
            "an analysis of features needs a model with backbone, pixel_mean and pixel_std, as "
            f"Detectron2's detectors and segmenters have them, got {type(model).__name__}"
        )
    pyramid = cast(Backbone, getattr(backbone, "bottom_up", backbone))
    return pyramid, {name: shape.stride for name, shape in pyramid.output_shape().items()}


def normalised_image(predictor: LazyPredictor, image: np.ndarray) -> ImageList:
    """What a model's backbone gets for an image: resized as in tests, normalised and padded.

    Args:
        predictor: with any model that has a backbone, `pixel_mean` and `pixel_std`.
        image: as the predictor takes it.

    Raises:
        ValueError: the model has not.
    """
    model = predictor.model
    _pyramid(model)
    backbone = cast(Backbone, model.backbone)
    pixels = predictor.preprocess(image)["image"].to(model.pixel_mean.device)
    return ImageList.from_tensors(
        [(pixels - model.pixel_mean) / model.pixel_std],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    )


@torch.no_grad()
def feature_maps(predictor: LazyPredictor, image: np.ndarray) -> dict[int, Tensor]:
    """The levels of the feature pyramid that the heads, or their neck, take.

    They are `res2 .. res5` of a ViT-Adapter. The image is resized as in tests, and taken as a whole
    even if the model predicts in windows.

    Args:
        predictor: with any model that has a backbone.
        image: (H, W, 3) uint8 in BGR order.

    Returns:
        For each stride, the map (C, h, w) without the cells that are only padding, on the CPU.

    Raises:
        ValueError: the model has no backbone, or the maps are not finite.
    """
    pyramid, strides = _pyramid(predictor.model)
    images = normalised_image(predictor, image)
    height, width = images.image_sizes[0]
    maps = {}
    for name, features in pyramid(images.tensor).items():
        stride = strides[name]
        level = features[0, :, : math.ceil(height / stride), : math.ceil(width / stride)]
        if not level.isfinite().all():
            raise ValueError(f"feature maps must be finite, but those of {name} are not")
        maps[stride] = level.float().cpu()
    return dict(sorted(maps.items()))


def log_amplitudes(features: Tensor) -> Tensor:
    """Log amplitudes of the Fourier transform of a feature map, relative to the zero frequency.

    As Park & Kim (arXiv 2202.06709) define them, the logarithms are averaged over the channels.
    Maps of any size are interpolated to the same frequencies, bilinearly. For a map whose sides
    divide 2 * (FREQUENCIES - 1), or are equal to it, all its own frequencies are among these.

    Args:
        features: (C, h, w).

    Returns:
        (2 * FREQUENCIES - 1, 2 * FREQUENCIES - 1), for vertical and horizontal frequencies from -pi
        to pi. From the centre on, the diagonal is the curve of figure 5.
    """
    spectrum = (torch.fft.fft2(features.double()).abs() + _EPSILON).log().mean(0)
    for dim in (0, 1):
        spectrum = _at_frequencies(spectrum, dim)
    return spectrum - spectrum[FREQUENCIES - 1, FREQUENCIES - 1]


def _at_frequencies(spectrum: Tensor, dim: int) -> Tensor:
    """Interpolates the rows or columns of a spectrum, which is periodic, from -pi to pi."""
    count = spectrum.shape[dim]
    places = torch.linspace(-0.5, 0.5, 2 * FREQUENCIES - 1, dtype=torch.float64) * count
    before = places.floor()
    share = (places - before).unsqueeze(1 - dim)
    first = spectrum.index_select(dim, before.long() % count)
    second = spectrum.index_select(dim, (before.long() + 1) % count)
    return first * (1 - share) + second * share


@dataclass
class _Run:
    """What is kept of a model's feature maps, by stride."""

    spectra: dict[int, np.ndarray]
    """The mean of `log_amplitudes` over the images."""
    pictures: list[dict[int, np.ndarray]]
    """For each image that is drawn, `_contrast` (h, w)."""


def _contrast(features: Tensor) -> np.ndarray:
    """How much each cell of a map (C, h, w) differs from the mean of all: a distance (h, w).

    The paper does not say how it reduces its maps to one channel. Unlike the mean of the channels,
    this depends neither on their signs nor on constants, such as the biases of a transposed
    convolution.
    """
    return (features - features.mean((1, 2), keepdim=True)).square().mean(0).sqrt().numpy()


def _run(
    predictor: LazyPredictor, images: Sequence[Path], num_pictures: int, strides: Sequence[int]
) -> _Run:
    sums = dict.fromkeys(strides, torch.zeros(()))
    pictures: list[dict[int, np.ndarray]] = []
    for path in images:
        image = np.ascontiguousarray(read_image(str(path), predictor.array_format))
        try:
            maps = feature_maps(predictor, image)
        except ValueError as error:
            raise ValueError(f"{path} cannot be analysed: {error}") from error
        for stride in strides:
            sums[stride] = sums[stride] + log_amplitudes(maps[stride])
        if len(pictures) < num_pictures:
            pictures.append({stride: _contrast(maps[stride]) for stride in strides})
    return _Run({k: (total / len(images)).numpy() for k, total in sums.items()}, pictures)


def _common_strides(predictors: Mapping[str, LazyPredictor]) -> list[int]:
    by_run = {name: sorted(_pyramid(run.model)[1].values()) for name, run in predictors.items()}
    common = sorted(set.intersection(*map(set, by_run.values())))
    if not common:
        raise ValueError(f"the runs must have levels of equal strides, got {by_run}")
    return common


def _curve(spectrum: np.ndarray) -> np.ndarray:
    """The diagonal (FREQUENCIES,) from frequency 0 to pi."""
    return spectrum.diagonal()[FREQUENCIES - 1 :]


def _write_csv(runs: Mapping[str, _Run], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "stride", "frequency / pi", "relative log amplitude"])
        for name, run in runs.items():
            for stride, spectrum in run.spectra.items():
                for index, value in enumerate(_curve(spectrum)):
                    writer.writerow([name, stride, index / (FREQUENCIES - 1), value])


def _table(runs: Mapping[str, _Run], strides: Sequence[int]) -> str:
    """The mean of each curve over the upper half of the frequencies."""
    rows = [["relative log amplitude, pi/2 to pi", *(f"stride {stride}" for stride in strides)]]
    for name, run in runs.items():
        curves = [_curve(run.spectra[stride])[FREQUENCIES // 2 :] for stride in strides]
        rows.append([name, *(f"{curve.mean():.2f}" for curve in curves)])
    return markdown_table(rows)


def analyze_features(
    predictors: Mapping[str, LazyPredictor],
    images: Sequence[Path],
    output_dir: str | Path,
    *,
    num_pictures: int = 4,
) -> tuple[str, list[Path]]:
    """Draws the Fourier spectra of several models' feature maps, and the maps of some images.

    Levels are compared by their strides.

    Args:
        predictors: for the name of each run, its model.
        images: the image files, over which spectra are averaged.
        output_dir: folder for `spectra.png`, `spectra.csv` and, for each of the first
            `num_pictures` images, `features_{number}_{name}.png`; it is made if necessary.
        num_pictures: of how many images feature maps are drawn.

    Returns:
        A table of the amplitudes of high frequencies as text, and the files.

    Raises:
        ValueError: there is no run or no image, an image cannot be read, a model has no backbone
            or feature maps that are not finite, or the models have no level in common.
    """
    if not predictors or not images or num_pictures < 0:
        raise ValueError(
            "at least one run and one image are needed, and no negative number of pictures, got "
            f"{len(predictors)} runs, {len(images)} images and {num_pictures} pictures"
        )
    strides = _common_strides(predictors)
    runs = {name: _run(p, images, num_pictures, strides) for name, p in predictors.items()}
    folder = Path(output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "spectra.png", folder / "spectra.csv"]
    plot_spectra({name: run.spectra for name, run in runs.items()}, written[0])
    _write_csv(runs, written[1])
    for number, path in enumerate(images[:num_pictures]):
        written.append(folder / f"features_{number + 1:02d}_{path.stem}.png")
        maps = {name: run.pictures[number] for name, run in runs.items()}
        # A copy, because PyTorch warns of arrays that cannot be written to.
        stored = torch.from_numpy(read_stored(str(path)).copy())
        shown = shown_image(stored.permute(2, 0, 1), "RGB")
        draw_feature_maps(shown, maps, written[-1])
    return _table(runs, strides), written
