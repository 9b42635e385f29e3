"""Exported files: what they take, and what is refused."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from detectron2.data import transforms as T
from exported_models import build, predictor_of
from PIL import Image
from torch import nn

from vitadapter.data.transforms import ResizeToFit, StretchToMultiple, augment
from vitadapter.export import ExportedPredictor, export
from vitadapter.export.description import Description, describe
from vitadapter.export.exporting import _written_whole
from vitadapter.export.formats import Onnx, open_file
from vitadapter.export.formats.onnx_graph import to_onnx
from vitadapter.export.graphs import graph_of
from vitadapter.export.precision import Tolerance
from vitadapter.layers.soft_nms import SoftNMS
from vitadapter.modeling.inference import SlidingWindow, TiledInference, Tiles


@pytest.fixture(scope="module")
def segmenter() -> nn.Module:
    return build("semantic_fpn")


@pytest.fixture(scope="module")
def onnx_file(segmenter: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("files") / "segmenter.onnx"
    assert export(predictor_of(segmenter), "onnx", file) < 1e-4
    assert [path.name for path in file.parent.iterdir()] == ["segmenter.onnx"]
    return file


def test_files_do_not_tell_folders_of_this_machine(
    onnx_file: Path, segmenter: nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / "segmenter.pt2"
    export(predictor_of(segmenter), "torch", file)
    with zipfile.ZipFile(file) as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    for folder in (Path(torch.__file__).parents[1], Path(__file__).parents[2]):
        for content in (onnx_file.read_bytes(), *contents):
            assert str(folder).encode() not in content


def test_a_file_says_what_it_is(onnx_file: Path) -> None:
    onnx.checker.check_model(onnx.load(onnx_file), full_check=True)
    _, description = open_file(onnx_file)
    assert description.model == "SemanticSegmentor"
    assert description.image_format == "RGB"
    assert description.outputs == ["sem_seg"]
    assert description.pixel_mean == [120.0, 110.0, 100.0]
    assert description.software["torch"] == torch.__version__
    metadata = ExportedPredictor(onnx_file).metadata
    assert metadata.as_dict() == predictor_of(build("semantic_fpn")).metadata.as_dict()


def test_segmenters_take_batches_of_any_size(onnx_file: Path, segmenter: nn.Module) -> None:
    compute, _ = open_file(onnx_file)
    for batch, size in enumerate([(70, 90), (128, 64), (40, 200)], start=1):
        images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)
        (found,) = compute(images)
        for image, logits in zip(images, found, strict=True):
            expected = segmenter([{"image": image}])[0]["sem_seg"]
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_windows_and_resizing_are_those_of_the_model(tmp_path: Path) -> None:
    model = build("semantic_fpn")
    model.inference = SlidingWindow((64, 64), (40, 40))
    source = predictor_of(model)
    resize = ResizeToFit(80, 200)
    source.augmentations = T.AugmentationList([resize])
    export(source, "torch", tmp_path / "a.pt2")
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    resized = resize.get_transform(image).apply_image(image)
    rgb = torch.from_numpy(resized[:, :, ::-1].transpose(2, 0, 1).copy())
    with torch.no_grad():
        expected = model([{"image": rgb, "height": 50, "width": 70}])[0]["sem_seg"]
    found = ExportedPredictor(tmp_path / "a.pt2")(image)["sem_seg"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_tiles_of_a_large_image(onnx_file: Path) -> None:
    """Without an overlap, these are images of their own."""
    tiles = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    whole = ExportedPredictor(onnx_file, tiles=Tiles(96, 0.0))(np.concatenate(tiles, axis=1)[:64])
    assert whole["label_map"].shape == (64, 192)
    expected = [p["sem_seg"].argmax(0) for p in ExportedPredictor(onnx_file).predict(tiles)]
    assert torch.equal(whole["label_map"].long(), torch.cat(expected, dim=1))


def test_tiles_and_channels_are_not_written(segmenter: nn.Module, tmp_path: Path) -> None:
    source = predictor_of(segmenter)
    source.image_format = 5
    with pytest.raises(ValueError, match=r"models of colours can be exported, got one of 5"):
        export(source, "torch", tmp_path / "a.pt2")
    source.inference = TiledInference(source.inference, Tiles(96), torch.from_numpy)
    with pytest.raises(ValueError, match=r"how images are cut into tiles"):
        export(source, "torch", tmp_path / "a.pt2")


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [T.ResizeShortestEdge(80, 100)],
        [T.ResizeShortestEdge([80], 100, sample_style="choice")],
        [T.ResizeShortestEdge([80, 80])],
        [ResizeToFit(40, 60), StretchToMultiple(32)],
        [ResizeToFit(40)],
    ],
)
def test_a_description_has_the_steps_of_resizing(segmenter: nn.Module, steps: list) -> None:
    source = predictor_of(segmenter)
    source.augmentations = T.AugmentationList(steps)
    description = describe(source, graph_of(segmenter), None)
    read = Description.from_json(description.to_json())
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    expected, found = (
        augment(x, image).image for x in (source.augmentations, read.augmentations())
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "step",
    [
        T.RandomFlip(),
        T.ResizeShortestEdge([80, 81]),
        T.ResizeShortestEdge([80, 90], sample_style="choice"),
        T.ResizeShortestEdge(80, interp=Image.NEAREST),
    ],
)
def test_steps_that_no_file_can_describe(segmenter: nn.Module, step: T.Augmentation) -> None:
    source = predictor_of(segmenter)
    source.augmentations = T.AugmentationList([step])
    with pytest.raises(
        ValueError, match=rf"can only resize images by .*, got {type(step).__name__}"
    ):
        describe(source, graph_of(segmenter), None)


def test_a_file_for_one_size_takes_no_other(segmenter: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "fixed.pt2"
    assert export(predictor_of(segmenter), "torch", file, size=(64, 96)) < 1e-4
    predictor = ExportedPredictor(file)
    assert predictor(np.zeros((50, 90, 3), np.uint8))["sem_seg"].shape == (3, 50, 90)
    with pytest.raises(ValueError, match=r"padded to \[64, 96\] \(height, width\), got \[96, 96\]"):
        predictor(np.zeros((70, 90, 3), np.uint8))
    with pytest.raises(ValueError, match="must be multiples of 32 pixels, got \\(60, 96\\)"):
        export(predictor_of(segmenter), "torch", file, size=(60, 96))


def test_images_that_are_too_small(onnx_file: Path) -> None:
    with pytest.raises(ValueError, match=r"sides of more than 32 pixels, got \[20, 90\]"):
        ExportedPredictor(onnx_file)(np.zeros((20, 90, 3), np.uint8))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 64, 64), torch.uint8), ((1, 1, 64, 64), torch.uint8), ((1, 3, 64, 64), torch.float32)],
)
def test_what_are_no_images(onnx_file: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compute, _ = open_file(onnx_file)
    with pytest.raises(ValueError, match=rf"must be \(B, 3, H, W\) uint8, got .* {dtype}"):
        compute(torch.zeros(shape, dtype=dtype))


def test_unknown_formats_and_suffixes(segmenter: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="one of torch, aoti, onnx, openvino, tensorrt, got 'coreml'"
    ):
        export(predictor_of(segmenter), "coreml", tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"format onnx must end in \.onnx, got"):
        export(predictor_of(segmenter), "onnx", tmp_path / "a.pt2")
    with pytest.raises(FileNotFoundError, match=r"the folder of .*a\.onnx does not exist"):
        export(predictor_of(segmenter), "onnx", tmp_path / "nowhere" / "a.onnx")
    with pytest.raises(ValueError, match=r"ends in \.onnx or \.xml or \.pt2"):
        ExportedPredictor(Path(__file__))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ExportedPredictor(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_damaged_files(onnx_file: Path, suffix: str, tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04 no archive", onnx_file.read_bytes()[:1000]):
        damaged = tmp_path / f"damaged{suffix}"
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be used as an exported file"):
            ExportedPredictor(damaged)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_files_of_another_kind(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"other{suffix}"
    file.with_suffix(".bin").touch()  # beside an .xml
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("photos/readme.txt", "photos")
    with pytest.raises(ValueError, match=f"other{suffix} cannot be used as an exported file: "):
        ExportedPredictor(file)
    torch.save({"model": {"weight": torch.zeros(2)}}, file)  # a checkpoint
    with pytest.raises(ValueError, match=f"other{suffix} cannot be used as an exported file: "):
        ExportedPredictor(file)


def test_a_program_of_someone_else(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(ValueError, match=r"other\.pt2 cannot be used .* has no description"):
        ExportedPredictor(tmp_path / "other.pt2")


def test_files_of_newer_versions_and_of_others(onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    (entry,) = model.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | {"version": 99})
    onnx.save(model, tmp_path / "newer.onnx")
    with pytest.raises(ValueError, match=r"version 99 of the format.*update it"):
        ExportedPredictor(tmp_path / "newer.onnx")
    entry.key = "other"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="has no description"):
        ExportedPredictor(tmp_path / "other.onnx")


def test_a_missing_runtime_is_named(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="package onnxruntime: pip install"):
        Onnx().read(onnx_file)


def test_what_no_file_can_hold(tmp_path: Path) -> None:
    detector = build("atss")
    detector.test_nms = SoftNMS()
    with pytest.raises(ValueError, match="only HardNMS can be exported"):
        export(predictor_of(detector), "torch", tmp_path / "a.pt2")
    with pytest.raises(ValueError, match="models that can be exported are Mask2Former"):
        export(predictor_of(torch.nn.Linear(1, 1).eval()), "torch", tmp_path / "a.pt2")
    with pytest.raises(ValueError, match=r"call model\.eval"):
        export(predictor_of(build("atss").train()), "torch", tmp_path / "a.pt2")
    augmented = predictor_of(build("atss"))
    augmented.inference.tta = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"train\.inference\.tta\.enabled=False"):
        export(augmented, "torch", tmp_path / "a.pt2")
    linear = predictor_of(torch.nn.Linear(1, 1).eval())
    with pytest.raises(ValueError, match="Linear has no backbone, pixel_mean, pixel_std"):
        export(linear, "torch", tmp_path / "a.pt2", only_backbone=True)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_traced_is_no_traceback(tmp_path: Path) -> None:
    model = build("semantic_fpn")
    head = model.sem_seg_head.forward
    model.sem_seg_head.forward = lambda features: head(
        {name: x[x.sum() > 0][None] for name, x in features.items()}
    )
    with pytest.raises(ValueError, match=r"torch\.export cannot trace the model: "):
        export(predictor_of(model), "torch", tmp_path / "a.pt2")


class Untranslatable(nn.Module):
    """PyTorch's histogram, which ONNX has not."""

    def forward(self, images: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        return torch.histc(images, 3)


def test_what_onnx_has_no_form_for() -> None:
    arguments = torch.zeros(1, 3, 64, 64), torch.tensor([64, 64])
    program = torch.export.export(Untranslatable(), arguments)
    with pytest.raises(ValueError, match="ONNX cannot hold the model: "):
        to_onnx(program, ["images", "size"], ["x"])


def test_models_that_are_too_large_for_int8(
    segmenter: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Onnx, "max_int8_bytes", 1000)
    with pytest.raises(ValueError, match=r"weights of at most 0\.00 GiB, the model has 0\.00 GiB"):
        export(
            predictor_of(segmenter),
            "onnx",
            tmp_path / "a.onnx",
            precision=torch.int8,
            calibration=[tmp_path / "a.png"],
        )


def test_weights_that_one_file_cannot_hold(
    segmenter: nn.Module, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, data = tmp_path / "large.onnx", tmp_path / "large.onnx.data"
    monkeypatch.setattr("vitadapter.export.formats.onnx.MAX_BYTES", 1000)
    assert export(predictor_of(segmenter), "onnx", file) < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, data.name]
    assert file.stat().st_size < onnx_file.stat().st_size - data.stat().st_size / 2
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    found, expected = (ExportedPredictor(each)(image)["sem_seg"] for each in (file, onnx_file))
    torch.testing.assert_close(found, expected)
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"large\.onnx cannot be used as an exported file: "):
        ExportedPredictor(file)
    data.unlink()
    with pytest.raises(ValueError, match=r"large\.onnx cannot be used .*large\.onnx\.data"):
        ExportedPredictor(file)
    data.touch()
    with _written_whole(file, Onnx.companions) as partial:
        partial.write_bytes(onnx_file.read_bytes())
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert ExportedPredictor(file)(image)["sem_seg"].equal(expected)


def test_checkpoints_and_weights(segmenter: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pth do not exist"):
        export(tmp_path / "nowhere.pth", "torch", tmp_path / "a.pt2")
    with pytest.raises(ValueError, match="the model has weights already"):
        export(predictor_of(segmenter), "torch", tmp_path / "a.pt2", weights="model.pth")


def test_a_file_with_other_answers_is_not_written(
    segmenter: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = Tolerance(outputs=-1.0, answers={}, points=0.0)
    monkeypatch.setattr("vitadapter.export.exporting.tolerance_of", lambda precision: none)
    file = tmp_path / "a.pt2"
    with pytest.raises(ValueError, match=r"outputs for noise must agree within -1, got"):
        export(predictor_of(segmenter), "torch", file, only_backbone=True)
    assert list(tmp_path.iterdir()) == []
    export(predictor_of(segmenter), "torch", file, only_backbone=True, force=True)
    assert file.is_file()
