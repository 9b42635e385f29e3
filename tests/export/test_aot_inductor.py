"""Packages of AOTInductor, in Python and in the C++ example, which runs without Python."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from exported_models import build, predictor_of
from PIL import Image
from torch import Tensor, nn

import vitadapter.ops
from vitadapter.export import ExportedPredictor, export
from vitadapter.export.description import describe
from vitadapter.export.formats import AotInductor, open_file
from vitadapter.export.graphs import graph_of
from vitadapter.modeling.dense import ATSSHead
from vitadapter.ops import MSDeformAttn

EXAMPLE = Path(__file__).parents[2] / "projects/ViTAdapter/deployment/aot_inductor"
SIZES = [(61, 83), (128, 64), (40, 200)]


class Attentive(Backbone):
    """Two maps; the pixels of the smaller one attend to both by our operator."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 8, 9, stride=8, padding=4)
        self.coarse = nn.Conv2d(3, 8, 17, stride=16, padding=8)
        self.attention = MSDeformAttn(8, num_heads=2, num_levels=2, num_points=2)

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [self.fine(images), self.coarse(images)]
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        fine, coarse = (x.flatten(2).transpose(1, 2) for x in maps)
        points = coarse[:, :, None, :2].sigmoid().repeat(1, 1, 2, 1)
        found = self.attention(coarse, points, torch.cat([fine, coarse], dim=1), shapes)
        return {"res4": (coarse + found).transpose(1, 2).unflatten(2, shapes[1])}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res4": ShapeSpec(channels=8, stride=16)}


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    """ATSS with one level, since compiling is slow."""
    torch.manual_seed(1)
    model = build("atss")
    model.backbone = Attentive()
    model.head_in_features = ["res4"]
    model.anchor_generator = DefaultAnchorGenerator(sizes=[[64]], aspect_ratios=[1.0], strides=[16])
    model.head = ATSSHead(
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        in_channels=8,
        num_levels=1,
        num_classes=3,
        conv_dims=[8],
        norm="",
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
    nn.init.zeros_(model.head.cls_score.bias)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def package(detector: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = predictor_of(detector)
    source.augmentations = T.AugmentationList([T.ResizeShortestEdge(72, 150)])
    file = tmp_path_factory.mktemp("package") / "detector.pt2"
    assert export(source, "aoti", file) < 1e-4
    return file


def _image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def test_the_same_answers_at_other_sizes(package: Path, detector: nn.Module) -> None:
    compute, description = open_file(package)
    assert description.thing_classes == ["cat", "dog", "cow"]
    for height, width in SIZES:
        image = torch.from_numpy(_image(height, width)).permute(2, 0, 1)
        (expected,) = detector([{"image": image}])
        boxes, scores, classes = compute(image[None])
        expected = expected["instances"]
        assert len(expected) > 0
        torch.testing.assert_close(scores, expected.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
        assert classes.equal(expected.pred_classes)


def test_code_uses_the_threads_of_the_process_that_runs_it(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        (kernels,) = [name for name in archive.namelist() if name.endswith(".kernel.cpp")]
        code = archive.read(kernels).decode()
    assert "#pragma omp parallel" in code
    assert "num_threads(" not in code


def _with_metadata(package: Path, old: bytes, new: bytes, file: Path) -> Path:
    """Copies a package with a text of its metadata replaced."""
    with zipfile.ZipFile(package) as original, zipfile.ZipFile(file, "w") as changed:
        for name in original.namelist():
            content = original.read(name)
            if name.endswith("_metadata.json"):
                assert old in content
                content = content.replace(old, new)
            changed.writestr(name, content)
    return file


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_other_packages(package: Path, damage: str, tmp_path: Path) -> None:
    file = tmp_path / "damaged.pt2"
    if damage == "cut":
        file.write_bytes(package.read_bytes()[:-100])
        message = "torch.export.load cannot read it"
    else:
        _with_metadata(package, b'"vitadapter"', b'"other"', file)
        message = "it has no description"
    with pytest.raises(ValueError, match=f"cannot be used as an exported file: {message}"):
        ExportedPredictor(file)


def test_a_missing_compiler_is_named(detector: nn.Module, tmp_path: Path) -> None:
    graph = graph_of(detector)
    description = describe(predictor_of(detector), graph, None)
    program = torch.export.export(nn.Identity(), (torch.zeros(1),))
    # Not by `monkeypatch`, which deletes the setting in the end.
    no_compiler = torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",)})
    with no_compiler, pytest.raises(ValueError, match=r"needs a C\+\+ compiler .*/nowhere/g\+\+"):
        AotInductor().write(program, description, tmp_path / "a.pt2")


def _run(*command: str | Path) -> str:
    # Without an environment: nothing of this Python can be found.
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.defpath})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_in_cpp(package: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake absent")
    if vitadapter.ops.library._EXTENSION is None:
        pytest.skip("the operators are not compiled")
    build_folder, photo = tmp_path / "build", tmp_path / "photo.ppm"
    torch_folder = Path(torch.__file__).parent
    _run("cmake", "-S", EXAMPLE, "-B", build_folder, f"-DCMAKE_PREFIX_PATH={torch_folder}")
    _run("cmake", "--build", build_folder)
    libraries = [
        Path(vitadapter.ops.library._EXTENSION.__file__),
        next(Path(torchvision.__file__).parent.glob("_C*.so")),
    ]
    # The first one is not resized, in which PyTorch rounds otherwise than Pillow.
    for size, tolerances in (((72, 98), (1e-4, 1e-2)), ((61, 83), (2e-3, 0.5))):
        image = _image(*size)
        Image.fromarray(image[:, :, ::-1]).save(photo)
        printed = _run(build_folder / "detect", package, photo, *libraries)
        found = [line.split("\t") for line in printed.splitlines()]
        expected = ExportedPredictor(package)(image)["instances"]
        names = ["cat", "dog", "cow"]
        assert len(found) > 0
        assert [line[0] for line in found] == [names[number] for number in expected.pred_classes]
        numbers = np.array([line[1:] for line in found], dtype=float)
        np.testing.assert_allclose(numbers[:, 0], expected.scores, atol=tolerances[0])
        np.testing.assert_allclose(numbers[:, 1:], expected.pred_boxes.tensor, atol=tolerances[1])
    photo.write_bytes(b"P6 2 2 255 short")
    full_size = _with_metadata(
        package, b'"outputs"', b'"full_size": "yes", "outputs"', tmp_path / "full_size.pt2"
    )
    for file, message in (
        (package, "photo.ppm ends before its last pixel"),
        (full_size, "full_size.pt2 was exported with --full-size"),
    ):
        failed = subprocess.run(
            [build_folder / "detect", file, photo, *libraries], capture_output=True, text=True
        )
        assert failed.returncode == 1
        assert message in failed.stderr
