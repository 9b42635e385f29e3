"""Feature maps and their spectra, against the model's own run and Park & Kim's procedure."""

import csv
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from omegaconf import DictConfig
from PIL import Image
from project_configs import PROJECT, load
from run_fixtures import TINY_CONFIG
from torch import Tensor

from vitadapter.analysis.features import (
    FREQUENCIES,
    analyze_features,
    feature_maps,
    log_amplitudes,
)
from vitadapter.commands.analyze_features import main
from vitadapter.data.image_files import image_paths, read_image
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.modeling.backbone import TimmViT

CENTRE = FREQUENCIES - 1


def _digits(name: str) -> DictConfig:
    """An experiment of the quickstart, with a net of four blocks."""
    cfg = load(PROJECT / "configs" / "Digits" / f"{name}.py")
    backbone = cfg.model.backbone
    while "net" not in backbone:
        backbone = backbone.bottom_up
    backbone.net.update(depth=4, embed_dim=32, num_heads=2)
    if "block_indexes" in backbone:
        backbone.block_indexes = [0, 1, 2, 3]
    if "deform_num_heads" in backbone:
        backbone.deform_num_heads = 4
    cfg.train.device = "cpu"
    return cfg


def _timm() -> DictConfig:
    cfg = _digits("mask_rcnn_vit_adapter_t")
    cfg.model.backbone.bottom_up.net = L(TimmViT)(
        model_name="vit_tiny_patch16_224",
        depth=4,
        embed_dim=32,
        num_heads=2,
        drop_path_rate=0.0,
        use_act_checkpoint=False,
    )
    return cfg


def _predictor(cfg: DictConfig) -> LazyPredictor:
    torch.manual_seed(0)
    return LazyPredictor(cfg, "")


@pytest.fixture(scope="module")
def predictors() -> dict[str, LazyPredictor]:
    return {
        "ViT": _predictor(_digits("mask_rcnn_vit_t")),
        "ViTDet": _predictor(_digits("mask_rcnn_vitdet_t")),
        "UPerNet": _predictor(_digits("upernet_vit_adapter_t")),
        "timm": _predictor(_timm()),
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with images of several sizes and colour modes."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("b.png", (60, 90, 3)), ("a.jpg", (128, 128, 3)), ("c.png", (100, 40))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return folder


def _park_and_kim(features: Tensor) -> Tensor:
    """The procedure of their notebook `fourier_analysis`, in its order, for a square map."""
    height, width = features.shape[1:]
    amplitudes = (torch.fft.fft2(features).abs() + 1e-6).log()
    shifted = torch.roll(amplitudes, shifts=(height // 2, width // 2), dims=(1, 2)).mean(dim=0)
    half = shifted.diag()[height // 2 :]
    return half - half[0]


@pytest.mark.parametrize("side", [4, 16, 32, 64])
def test_curves_are_those_of_park_and_kim(side: int) -> None:
    features = torch.randn(5, side, side, dtype=torch.float64) + 1
    expected = _park_and_kim(features)
    step = 2 * CENTRE // side
    curve = log_amplitudes(features).diagonal()[CENTRE:]
    torch.testing.assert_close(curve[::step][: side // 2], expected)


def test_spectra_are_symmetrical_and_relative() -> None:
    spectrum = log_amplitudes(torch.randn(3, 20, 31))
    assert spectrum.shape == (2 * CENTRE + 1, 2 * CENTRE + 1)
    assert spectrum[CENTRE, CENTRE] == 0
    # The features are real, and -pi and pi are one frequency.
    torch.testing.assert_close(spectrum, spectrum.flip(0, 1))
    torch.testing.assert_close(spectrum[0], spectrum[-1])


@pytest.mark.parametrize("size", [(16, 16), (32, 48), (80, 64)])
def test_a_wave_is_found_at_its_frequency_in_maps_of_any_size(size: tuple[int, int]) -> None:
    y, x = (torch.arange(side, dtype=torch.float64) for side in size)
    wave = torch.cos(2 * math.pi * (y[:, None] / 8 - x / 4))  # pi/4 down, -pi/2 to the right
    spectrum = log_amplitudes(torch.stack([wave + 0.1, 2 * wave + 0.2]))
    below = spectrum[CENTRE + 1 :]
    row, column = divmod(int(below.argmax()), below.shape[1])
    assert (row + 1, column - CENTRE) == (CENTRE // 4, -CENTRE // 2)
    # The amplitude of a cosine is half of that of a constant, relative to 0.1.
    assert float(below.max()) == pytest.approx(math.log(0.5 / 0.1), abs=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 1)])
def test_thin_maps(size: tuple[int, int]) -> None:
    spectrum = log_amplitudes(torch.rand(2, *size) + 1)
    assert spectrum.isfinite().all()


@pytest.mark.parametrize("name", ["ViT", "ViTDet", "UPerNet", "timm"])
def test_maps_are_those_of_a_prediction(predictors: dict[str, LazyPredictor], name: str) -> None:
    """In a prediction of the whole image, and without the cells of padding."""
    predictor = predictors[name]
    if name == "UPerNet":
        predictor.model.inference = None  # windows
    pyramid = getattr(predictor.model.backbone, "bottom_up", predictor.model.backbone)
    seen: list[dict[str, Tensor]] = []
    handle = pyramid.register_forward_hook(lambda *call: seen.append(call[2]))
    image = np.random.default_rng(1).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    try:
        predictor(image)
    finally:
        handle.remove()
    maps = feature_maps(predictor, image)
    strides = {name: shape.stride for name, shape in pyramid.output_shape().items()}
    assert list(maps)[:4] == [4, 8, 16, 32]
    height, width = predictor.preprocess(image)["image"].shape[1:]
    assert width % 32 or name == "UPerNet"  # whose images need no padding
    for level, features in seen[0].items():
        rows, columns = -(-height // strides[level]), -(-width // strides[level])
        torch.testing.assert_close(maps[strides[level]], features[0, :, :rows, :columns])


def test_all_figures(predictors: dict[str, LazyPredictor], images: Path, tmp_path: Path) -> None:
    paths = image_paths([images / "c.png", images])
    assert [path.name for path in paths] == ["c.png", "a.jpg", "b.png", "c.png"]
    runs = {name: predictors[name] for name in ("ViTDet", "UPerNet")}
    table, written = analyze_features(runs, paths[1:], tmp_path / "o" / "p", num_pictures=2)
    names = ["spectra.png", "spectra.csv", "features_01_a.png", "features_02_b.png"]
    assert [path.relative_to(tmp_path / "o" / "p").as_posix() for path in written] == names
    for path in written[:1] + written[2:]:
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 200
    header, _, *rows = table.splitlines()
    assert [cell.strip() for cell in header.split("|")][2:-1] == [
        f"stride {stride}"
        for stride in (4, 8, 16, 32)  # ViTDet's stride 64 is left out
    ]
    with (tmp_path / "o" / "p" / "spectra.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert len(points) == len(rows) * 4 * FREQUENCIES
    # The mean over the images, which have different sizes.
    found = [p for p in points if (p["run"], p["stride"]) == ("UPerNet", "8")]
    maps = [feature_maps(predictors["UPerNet"], read_image(str(p), "BGR")) for p in paths[1:]]
    assert len({m[8].shape for m in maps}) == 3
    mean = torch.stack([log_amplitudes(m[8]) for m in maps]).mean(0).diagonal()[CENTRE:]
    assert [float(p["relative log amplitude"]) for p in found] == pytest.approx(mean.tolist())
    assert [float(p["frequency / pi"]) for p in found][::CENTRE] == [0, 1]


def test_command_and_script(
    overrides: list[str],
    images: Path,
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(TINY_CONFIG)), overrides)
    weights = tmp_path / "weights.pth"
    torch.save({"model": _predictor(cfg).model.state_dict()}, weights)
    runs = ["--run", "trained", str(TINY_CONFIG), str(weights)]
    arguments = [str(images), *runs, "--output", str(tmp_path / "o"), "--num-images", "2"]
    arguments += ["--num-pictures", "1", "--overrides", *overrides]
    main(arguments)
    printed = capsys.readouterr().out
    script = runpy.run_path(str(repository / "scripts" / "analyze_features.py"))
    assert script["main"] is main
    assert "Averaged over 2 images." in printed
    assert "stride 8" in printed
    with pytest.raises(SystemExit, match="names of runs must differ, got 'trained' twice"):
        main([*arguments, *runs])
    with pytest.raises(SystemExit, match=r"no key 'model\.backbon'"):
        main([*arguments, "model.backbon=1"])
    with pytest.raises(SystemExit, match=r"error: dataloader: Missing key"):
        main([*arguments, "~dataloader"])
    with pytest.raises(SystemExit, match=r"each run needs a name .* got ' '"):
        main([*arguments, "--run", " ", *runs[2:]])
    (images / "b.png").write_bytes(b"broken")
    with pytest.raises(SystemExit, match=r"error: .*b\.png cannot be read"):
        main([*arguments, "train.seed=1"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"empty must contain images \(.*\.png.*\), found none"):
        main([str(tmp_path / "empty"), *arguments[1:]])
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        main(["nowhere", *arguments[1:]])


def test_unusable_models(
    predictors: dict[str, LazyPredictor], overrides: list[str], images: Path, tmp_path: Path
) -> None:
    paths = image_paths([images])
    with pytest.raises(ValueError, match="got 0 runs, 3 images and 4 pictures"):
        analyze_features({}, paths, tmp_path)
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(TINY_CONFIG)), overrides)
    other = _predictor(cfg)
    other.model.backbone.bottom_up._out_features = ["stem"]
    other.model.backbone.bottom_up._out_feature_strides["stem"] = 2
    other.model.backbone.bottom_up._out_feature_channels["stem"] = 8
    with pytest.raises(ValueError, match=r"levels of equal strides, got .*'b': \[2\]"):
        analyze_features({"a": predictors["ViT"], "b": other}, paths, tmp_path)
    broken = _predictor(cfg)
    next(broken.model.backbone.parameters()).data.fill_(math.nan)
    next(broken.model.backbone.bottom_up.parameters()).data.fill_(math.nan)
    with pytest.raises(ValueError, match=r"a\.jpg cannot be analysed: .* those of res2 are not"):
        analyze_features({"b": broken}, paths, tmp_path)
    del broken.model.backbone
    with pytest.raises(ValueError, match=r"needs a model with backbone, .* got GeneralizedRCNN"):
        analyze_features({"b": broken}, paths, tmp_path)
