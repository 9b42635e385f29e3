"""`vitadapter export`: what it writes answers as the model does."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from vitadapter.commands import export, predict, train
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.engine.trainer import do_train
from vitadapter.export import ExportedPredictor
from vitadapter.export.formats import open_file

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture
def weights(cfg: DictConfig, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "weights.pth"
    torch.save({"model": instantiate(cfg.model).state_dict()}, path)
    return path


def test_what_it_writes_predicts_as_the_config_with_weights(
    cfg: DictConfig,
    tiny_config: Path,
    overrides: list[str],
    weights: Path,
    tmp_path: Path,
    capsys,
    monkeypatch,
) -> None:
    output = tmp_path / "detector.onnx"
    arguments = [str(tiny_config), str(output), "--weights", str(weights), "--verify-dataset"]
    arguments += ["--verify", cfg.dataset.test.image_root, "--overrides", *overrides]
    assert export.main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"{output}: fp32, images of any size, differs by" in printed
    assert all(f"| {row}" in printed for row in ("detections", "masks", "bbox/AP ", "segm/AP "))
    assert not Path(cfg.train.output_dir).exists()
    expected, found = LazyPredictor(cfg, str(weights)), ExportedPredictor(output)
    for name in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
        assert found.metadata.get(name) == expected.metadata.get(name) is not None
    for height, width in ((90, 110), (128, 64), (50, 240)):
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        model, file = (predictor(image)["instances"] for predictor in (expected, found))
        assert len(model) == len(file) > 0
        torch.testing.assert_close(file.scores, model.scores, rtol=1e-4, atol=1e-5)
        boxes = file.pred_boxes.tensor, model.pred_boxes.tensor
        torch.testing.assert_close(*boxes, rtol=1e-4, atol=1e-3)
        assert file.pred_classes.equal(model.pred_classes)
        assert (file.pred_masks != model.pred_masks).float().mean() < 1e-3
    _check_evaluation(tiny_config, overrides, weights, output, monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        export.main(arguments)
    assert stopped.value.code == 2
    assert "exists: add --overwrite" in capsys.readouterr().err
    photo = tmp_path / "photo.png"
    predict.cv2.imwrite(str(photo), image)
    drawn = ["--output", str(tmp_path / "drawn")]
    assert predict.predict([str(output), str(photo), *drawn]) == 0
    assert (tmp_path / "drawn" / "photo.png").is_file()
    assert predict.predict([str(output), str(photo), *drawn, "--weights", "a.pth"]) == 2
    assert "leave out --weights and overrides" in capsys.readouterr().err
    beside = [str(tiny_config), str(photo), *drawn, "--weights", str(output), "--json"]
    beside += ["--overrides", *overrides]
    assert predict.predict(beside) == 0
    assert (tmp_path / "drawn" / "predictions.json").is_file()
    assert predict.predict([*beside, "model.input_format=RGB"]) == 2
    assert "leave out model.input_format=RGB" in capsys.readouterr().err
    asked = [str(tiny_config), *overrides, "--weights", str(output)]
    for override, message in (
        ("model.input_format=BGR", r"leave out model\.input_format=BGR"),
        ("dataloader.test.mapper.image_format=BGR", "takes RGB images, but .*image_format=BGR"),
    ):
        with pytest.raises(SystemExit, match=message):
            train.evaluate([*asked, override])
    with pytest.raises(SystemExit, match=r"can be evaluated, but not trained: .*detector\.onnx"):
        train.train([str(tiny_config), *overrides, f"train.init_checkpoint={output}"])


def _check_evaluation(
    config: Path, overrides: list[str], weights: Path, file: Path, monkeypatch
) -> None:
    """An exported file has the AP of the weights in whose place it stands."""
    evaluated = [f"{key}=" for key in ("train.output_dir", "dataset.test.json_file")]
    folder, annotations = (
        Path(next(o for o in overrides if o.startswith(key)).removeprefix(key)) for key in evaluated
    )
    script = ["--config-file", str(config), "--eval-only", *overrides]
    train.script([*script, f"train.init_checkpoint={weights}"])
    found = json.loads((folder / "inference/coco_instances_results.json").read_text())
    # Every second detection is an object, so that AP is neither 0 nor 100.
    content = json.loads(annotations.read_text())
    content["annotations"] = [
        dict(one, id=number, area=one["bbox"][2] * one["bbox"][3], iscrowd=0)
        for number, one in enumerate(found[::2], start=1)
    ]
    annotations.write_text(json.dumps(content))
    results = []
    monkeypatch.setattr("vitadapter.engine.trainer.print_csv_format", results.append)
    train.script([*script, f"train.init_checkpoint={weights}"])
    train.evaluate([str(config), *overrides, "--weights", str(file)])
    expected, exported = results
    for task in ("bbox", "segm"):
        assert 10 < expected[task]["AP"] < 95
        assert exported[task]["AP"] == pytest.approx(expected[task]["AP"], abs=0.05)


def test_a_checkpoint_that_carries_its_config(
    cfg: DictConfig, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg.train.max_iter = 1
    do_train(cfg)
    Path(cfg.dataset.test.json_file).unlink()
    weights, output = "output/model_final.pth", tmp_path / "detector.pt2"
    changes = ["--overrides", "model.roi_heads.box_predictor.test_score_thresh=0.02"]
    assert export.main([weights, str(output), "--full-size", *changes]) == 0
    exported = ExportedPredictor(output)
    assert exported.metadata.thing_classes == ["class0", "class1"]
    assert exported.description.full_size
    photo = next(Path(cfg.dataset.test.image_root).glob("*.png"))
    arguments = [weights, str(photo), "--score-threshold", "0", "--json", "--classes", "class1"]
    assert predict.predict([*arguments, *changes]) == 0
    found = json.loads(Path("predictions/predictions.json").read_text())
    assert {one["category_name"] for one in found} == {"class1"}
    arguments[0] = str(output)
    assert predict.predict([*arguments, "--output", "exported"]) == 0
    exported = json.loads(Path("exported/predictions.json").read_text())
    assert [one["segmentation"]["size"] for one in exported] == [
        one["segmentation"]["size"] for one in found
    ]
    for key in ("bbox", "score"):
        pairs = [np.ravel([one[key] for one in each]) for each in (exported, found)]
        np.testing.assert_allclose(*pairs, rtol=1e-3, atol=0.02)
    assert predict.predict([weights, str(photo), "--classes", "person"]) == 2
    assert "class0" in capsys.readouterr().err
    torch.save({"model": {}}, "bare.pth")
    assert predict.predict(["bare.pth", str(photo)]) == 2
    assert "bare.pth carries no config: give its config" in capsys.readouterr().err
    assert export.main(["nowhere.pth", str(tmp_path / "a.pt2")]) == 1
    assert "nowhere.pth do not exist" in capsys.readouterr().err


def test_the_backbone_alone(
    cfg: DictConfig, tiny_config: Path, weights: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "backbone.pt2"
    arguments = [str(tiny_config), str(output), "--weights", str(weights), "--backbone"]
    assert export.main(arguments) == 0
    model = instantiate(cfg.model).eval()
    model.load_state_dict(torch.load(weights, weights_only=True)["model"])
    compute, description = open_file(output)
    assert description.outputs == list(model.backbone.output_shape())
    images = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        expected = model.backbone((images - model.pixel_mean) / model.pixel_std)
    for name, value in zip(description.outputs, compute(images), strict=True):
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="holds only a backbone, whose outputs are"):
        ExportedPredictor(output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.pth"], "must end in .onnx or .xml or .pt2"),
        (["nowhere/model.pt2"], "does not exist"),
        (["model.pt2", "--format", "coreml"], "invalid choice: 'coreml'"),
        (["model.onnx", "--precision", "fp8"], "invalid choice: 'fp8'"),
        (["old.xml"], "old.bin exists: add --overwrite"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, tiny_config: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.bin").touch()
    with pytest.raises(SystemExit) as stopped:
        export.main([str(tiny_config), *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_folders_without_images(tiny_config: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    arguments = [str(tiny_config), str(tmp_path / "a.onnx"), "--weights", "a.pth"]
    for option in (["--calibrate"], ["--precision", "int8", "--calibrate"], ["--verify"]):
        assert export.main([*arguments, *option, str(tmp_path / "empty")]) == 1
        assert "empty must contain images (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["model.pt2", "--precision", "int8"],
            "can hold the precisions fp32, fp16, bf16, got int8",
        ),
        (["model.onnx", "--format", "tensorrt", "--full-size"], "leave out full_size"),
        (["model.onnx", "--backbone", "--full-size"], "a backbone alone has no last part"),
        (["folder.onnx", "--overwrite"], "folder.onnx is a folder: give a file to write"),
    ],
)
def test_what_no_file_can_be_is_refused_before_weights_are_read(
    arguments: list[str], message: str, tiny_config: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.onnx").mkdir()
    assert export.main([str(tiny_config), *arguments, "--weights", "nowhere.pth"]) == 1
    assert message in capsys.readouterr().err


def test_weights_of_another_model(
    cfg: DictConfig, tiny_config: Path, overrides: list[str], tmp_path: Path, capsys
) -> None:
    state, others = instantiate(cfg.model).state_dict(), tmp_path / "others.pth"
    name = "roi_heads.box_predictor.cls_score.weight"
    for weights, message in (
        ({f"other.{key}": value for key, value in state.items()}, "has none of the"),
        (state | {name: torch.zeros(7, state[name].shape[1])}, "cls_score.weight"),
        ({key: state[key] for key in state if key.startswith("backbone")}, "18 of the 62"),
    ):
        torch.save({"model": weights}, others)
        arguments = [str(tiny_config), str(tmp_path / "a.pt2"), "--weights", str(others)]
        assert export.main([*arguments, "--overrides", *overrides]) == 1
        error = capsys.readouterr().err
        assert re.search(f"error: .*others.pth.*{message}", error), error
    assert list(tmp_path.glob("*.pt2*")) == []


def test_weights_that_are_not_there(tiny_config: Path, tmp_path: Path, capsys) -> None:
    arguments = [str(tiny_config), str(tmp_path / "a.pt2")]
    assert export.main(arguments) == 1
    assert "--weights FILE takes your own" in capsys.readouterr().err
    assert export.main([*arguments, "--weights", "nowhere.pth"]) == 1
    assert "nowhere.pth do not exist" in capsys.readouterr().err
    assert list(tmp_path.glob("*.pt2*")) == []
