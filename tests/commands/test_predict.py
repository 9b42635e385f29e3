import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from PIL import Image

from vitadapter.commands import predict, predictors
from vitadapter.commands.train import evaluate


@pytest.fixture
def options(cfg: DictConfig, tiny_config: Path, tmp_path: Path) -> list[str]:
    """The options of every call: config and random weights that detect something everywhere."""
    torch.manual_seed(1)
    weights = tmp_path / "weights.pth"
    torch.save({"model": instantiate(cfg.model).state_dict()}, weights)
    threshold = ["--score-threshold", "0"]
    return ["--config-file", str(tiny_config), "--weights", str(weights), *threshold]


@pytest.fixture
def images(cfg: DictConfig) -> Path:
    return Path(cfg.dataset.train.image_root)


def write_video(path: Path, frames: int = 3) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (64, 48))
    for frame in range(frames):
        writer.write(np.full((48, 64, 3), 40 * frame, dtype=np.uint8))
    writer.release()


def test_a_folder(options: list[str], images: Path, tmp_path: Path) -> None:
    (images / "below").mkdir()
    (images / "000.png").rename(images / "below" / "000.png")
    for name in ("notes.txt", "._001.png", "._video.mp4", ".DS_Store"):
        (images / name).write_text("not an image")
    output = tmp_path / "drawn"
    assert predict.script([*options, "--input", str(images), "--output", str(output)]) == 0
    written = sorted(str(p.relative_to(output)) for p in output.rglob("*.png"))
    assert written == ["001.png", "002.png", "003.png", "below/000.png"]
    before, after = (cv2.imread(str(folder / "001.png")) for folder in (images, output))
    assert after.shape == before.shape
    assert (after != before).any()


def test_without_detections_the_picture_is_the_image(
    options: list[str], images: Path, tmp_path: Path
) -> None:
    target = tmp_path / "one.png"
    arguments = [*options, "--score-threshold", "1", "--input", str(images / "001.png")]
    assert predict.script([*arguments, "--output", str(target)]) == 0
    np.testing.assert_allclose(
        cv2.imread(str(target)).astype(int), cv2.imread(str(images / "001.png")), atol=2
    )


def test_patterns_and_overrides(options: list[str], images: Path, tmp_path: Path, capsys) -> None:
    pattern, single = str(images / "00[12].png"), str(images / "000.png")
    inputs = ["--input", pattern, single, "--output", str(tmp_path / "drawn")]
    changes = ["model.roi_heads.box_predictor.test_topk_per_image=1"]
    assert predict.script([*options, *inputs, *changes]) == 0
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3
    assert predict.script([*options, *inputs, "model.roi_head=1"]) == 2
    assert re.search(r"\nerror: .*'model\.roi_head'.*\n$", capsys.readouterr().err)


def test_equal_names_do_not_overwrite_each_other(
    options: list[str], images: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "000.png").write_bytes((images / "001.png").read_bytes())
    inputs = ["--input", str(images / "000.png"), str(other / "000.png")]
    assert predict.script([*options, *inputs, "--output", str(tmp_path / "drawn")]) == 0
    names = sorted(p.name for p in (tmp_path / "drawn").glob("*.png"))
    assert names == ["000.png", "000_2.png"]


def test_videos(options: list[str], tmp_path: Path) -> None:
    write_video(tmp_path / "clip.avi")
    inputs = ["--input", str(tmp_path / "clip.avi"), "--output", str(tmp_path / "drawn")]
    assert predict.script([*options, *inputs]) == 0
    capture = cv2.VideoCapture(str(tmp_path / "drawn" / "clip.mp4"))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(5)


def test_grey_and_transparent_images(options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "modes"
    folder.mkdir()
    cv2.imwrite(str(folder / "grey.png"), np.full((32, 40), 90, dtype=np.uint8))
    cv2.imwrite(str(folder / "alpha.png"), np.full((32, 40, 4), 90, dtype=np.uint8))
    output = tmp_path / "drawn"
    assert predict.script([*options, "--input", str(folder), "--output", str(output)]) == 0
    assert {p.name for p in output.glob("*.png")} == {"grey.png", "alpha.png"}


def test_failures_are_named_and_the_rest_goes_on(
    options: list[str], images: Path, tmp_path: Path, capsys
) -> None:
    (images / "001.png").write_bytes(b"broken")
    (images / "clip.mp4").write_bytes(b"broken")
    pipes = [str(tmp_path / "pipe.png"), str(tmp_path / "pipe.mp4")]
    for pipe in pipes:
        os.mkfifo(pipe)
    inputs = ["--input", str(images), "nowhere.png", *pipes, "--output", str(tmp_path / "drawn")]
    assert predict.script([*options, *inputs]) == 1
    printed = capsys.readouterr().out
    for name in ("001.png", "clip.mp4", "nowhere.png", "pipe.png", "pipe.mp4"):
        assert f"{name}: " in printed
    assert "3 of 8 inputs done" in printed
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3


@pytest.mark.parametrize("names", [("empty", "*.jpg"), ("nowhere.jpg", "nowhere.mp4")])
def test_nothing_found(
    options: list[str], tmp_path: Path, capsys, monkeypatch, names: tuple[str, ...]
) -> None:
    """It is said before the weights are loaded, which may be a long download."""
    monkeypatch.delattr(predictors, "LazyPredictor")
    (tmp_path / "empty").mkdir()
    inputs = ["--input", *(str(tmp_path / name) for name in names)]
    assert predict.script([*options, *inputs, "--output", str(tmp_path / "drawn")]) == 1
    assert "no image or video found" in capsys.readouterr().out


def test_inputs_are_never_overwritten(options: list[str], images: Path, capsys) -> None:
    before = (images / "000.png").read_bytes()
    for target in (images, images / "000.png"):
        inputs = ["--input", str(images / "000.png"), "--output", str(target)]
        assert predict.script([*options, *inputs]) == 2
        assert "would overwrite" in capsys.readouterr().err
    assert (images / "000.png").read_bytes() == before


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("images", "one.png", "is a file, but there are 4 inputs"),
        ("images", "file", "must be a folder, but .*file is a file"),
        ("images/000.png", "file/below", "must be a folder, but .*file is a file"),
        ("images/000.png", "file/one.png", "must be a folder, but .*file is a file"),
        ("images/000.png", "one.mp4", r"--output of an image must end in one of .*\.png"),
        ("images/000.png", "one.gif", r"--output of an image must end in .*got .*one\.gif"),
        ("clip.avi", "clip.png", r"--output of a video must end in one of .*\.mp4"),
        ("clip.avi", "clip.webm", r"--output of a video must end in .*got .*clip\.webm"),
    ],
)
def test_outputs_that_cannot_be_written(
    options: list[str],
    images: Path,
    tmp_path: Path,
    source: str,
    output: str,
    message: str,
    monkeypatch,
    capsys,
) -> None:
    monkeypatch.setattr(predictors, "LazyPredictor", None)  # found out before the model is loaded
    (tmp_path / "file").write_text("")
    write_video(tmp_path / "clip.avi")
    name = images / "000.png" if source.endswith(".png") else tmp_path / source
    inputs = ["--input", str(images if source == "images" else name)]
    assert predict.script([*options, *inputs, "--output", str(tmp_path / output)]) == 2
    assert re.match(f"error: .*{message}", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["drawn.v2", "drawn.gif/"])
def test_folders_may_have_a_suffix(
    options: list[str], images: Path, tmp_path: Path, name: str
) -> None:
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    inputs = ["--input", str(images / "000.png"), "--output", str(tmp_path / name)]
    assert predict.script([*options, *inputs]) == 0
    assert (tmp_path / name / "000.png").is_file()


def test_mistakes_are_error_lines(options: list[str], images: Path, tmp_path: Path, capsys) -> None:
    inputs = ["--input", str(images / "000.png"), "--output", str(tmp_path / "drawn")]
    config = options[:2]
    for arguments, message in (
        ([*config, *inputs], "no weights"),
        ([*config, "--weights", "nowhere.pth", *inputs], "nowhere.pth do not exist"),
        ([*options, *inputs, "train.device=gpu"], "train.device"),
        ([*options, *inputs, "~dataloader"], "dataloader: Missing key"),
        (["--config-file", "nowhere.py", *inputs], "nowhere.py does not exist"),
    ):
        assert predict.script(arguments) == 2
        assert re.match(f"error: .*{message}", capsys.readouterr().err)


def test_output_below_the_input_folder_is_not_drawn_again(options: list[str], images: Path) -> None:
    for _ in range(2):
        inputs = ["--input", str(images), "--output", str(images / "drawn")]
        assert predict.script([*options, *inputs]) == 0
    assert len(list((images / "drawn").rglob("*.png"))) == 4


def test_bad_threshold(options: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        predict.script([*options, "--input", "a", "--output", "b", "--score-threshold", "2"])
    assert stopped.value.code == 2
    assert "--score-threshold must be in [0, 1], got 2.0" in capsys.readouterr().err


def test_the_command_says_what_it_found(
    options: list[str], images: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    _, config, *others = options
    assert predict.predict([config, str(images / "000.png"), *others]) == 0
    said = capsys.readouterr().out
    assert re.search(r"000\.png: \w+ 0\.\d\d", said)
    assert (tmp_path / "predictions" / "000.png").is_file()


def test_the_command_takes_overrides_and_no_other_weights_than_asked(
    options: list[str], images: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    _, config, *others = options
    arguments = [config, str(images / "000.png")]
    changes = ["--overrides", "train.device=gpu"]
    assert predict.predict([*arguments, *others, *changes]) == 2
    assert "train.device" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        predict.predict([*arguments, "train.device=cpu"])
    assert stopped.value.code == 2
    assert "overrides come after --overrides" in capsys.readouterr().err
    assert predict.predict(arguments) == 2
    assert "--weights FILE takes your own" in capsys.readouterr().err


def test_two_sources_of_weights(images: Path, capsys) -> None:
    """One of them would be ignored."""
    name, change = "COCO/mask_rcnn_vit_adapter_s_deit_3x", "train.init_checkpoint=mine.pth"
    assert predict.predict([name, str(images / "000.png"), "--overrides", change]) == 2
    with pytest.raises(SystemExit):
        evaluate([name, change])
    said = capsys.readouterr().err
    assert said.count(f"in place of {change}, give --weights FILE") == 2


def test_json_and_crops_of_one_class(
    options: list[str], cfg: DictConfig, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "drawn"
    write_video(tmp_path / "clip.avi", frames=2)
    inputs = ["--input", str(images), str(tmp_path / "clip.avi"), "--output", str(output)]
    kinds = ["--json", "--crops", "--no-pictures", "--classes", "class1"]
    json_file = cfg.dataset.test.json_file
    given = [f"dataset.test.json_file={json_file}"]
    assert predict.script([*options, *inputs, *kinds, "--score-threshold", "0", *given]) == 0
    entries = json.loads((output / "predictions.json").read_text())
    assert {entry["category_name"] for entry in entries} == {"class1"}
    assert {entry["category_id"] for entry in entries} == {2}
    assert {entry["file_name"] for entry in entries} == {
        *(f"00{number}.png" for number in range(4)),
        "clip.avi",
    }
    assert {entry.get("frame") for entry in entries} == {None, 0, 1}
    crops = [path for path in (output / "crops").rglob("*") if path.is_file()]
    assert len(crops) == len(entries)
    assert not list(output.glob("*.png"))


def test_a_stopped_run_goes_on(
    options: list[str], images: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    output = tmp_path / "drawn"
    inputs = ["--input", str(images), "--output", str(output), "--json"]
    assert predict.script([*options, *inputs]) == 0
    whole = (output / "predictions.json").read_bytes()
    (output / "001.png").unlink()
    (output / "json" / "002.png.json").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.png")}
    os.utime(images / "003.png")  # a new image of the same name
    capsys.readouterr()
    assert predict.script([*options, *inputs, "--skip-existing"]) == 0
    assert "4 of 4 inputs done (1 were there)" in capsys.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("*.png")}
    assert len(after) == 4
    assert [name for name in before if before[name] == after[name]] == ["000.png"]
    assert (output / "predictions.json").read_bytes() == whole
    arguments = [*options, *inputs, "--skip-existing", "--score-threshold", "0.9"]
    assert predict.script(arguments) == 2
    assert re.match("error: --skip-existing goes on .*0.9", capsys.readouterr().err, re.DOTALL)


def test_predictions_of_an_earlier_run_are_not_mixed_in(
    options: list[str], images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "drawn"
    inputs = ["--input", str(images / "000.png"), str(images / "001.png"), "--output", str(output)]
    assert predict.script([*options, *inputs, "--json"]) == 0
    (images / "001.png").write_bytes(b"broken")
    assert predict.script([*options, *inputs, "--json", "--score-threshold", "0.1"]) == 1
    entries = json.loads((output / "predictions.json").read_text())
    assert {entry["file_name"] for entry in entries} == {"000.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "Persn"], r"--classes: the model has no class 'Persn' \(near ones: person"),
        (["--no-pictures"], "--no-pictures needs --json, --crops or --maps"),
        (["--maps"], "--maps needs a semantic or panoptic model"),
    ],
)
def test_requests_that_cannot_be_met(
    options: list[str], images: Path, tmp_path: Path, arguments: list[str], message: str, capsys
) -> None:
    inputs = ["--input", str(images / "000.png"), "--output", str(tmp_path / "drawn")]
    assert predict.script([*options, *inputs, *arguments]) == 2
    assert re.match(f"error: {message}", capsys.readouterr().err)
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize(
    ("experiment", "arguments", "message"),
    [
        ("ADE20K/upernet", ["--crops"], "--crops needs a model that finds objects, .* sem_seg"),
        ("ADE20K/upernet", ["--score-threshold", "0.5"], "--score-threshold 0.5 needs .* sem_seg"),
        ("COCOPanoptic/mask2former", ["--score-threshold", "0"], "needs .* panoptic_seg"),
        ("COCO/faster_rcnn", ["--maps"], "--maps needs .* instances"),
    ],
)
def test_options_of_other_tasks(
    images: Path, tmp_path: Path, experiment: str, arguments: list[str], message: str, capsys
) -> None:
    """They are refused before weights are looked for."""
    name = f"{experiment}_vit_adapter_s_dinov2_finetune"
    given = [name, str(images / "000.png"), "--weights", "nowhere.pth", *arguments]
    assert predict.predict([*given, "--output", str(tmp_path / "drawn")]) == 2
    assert re.match(f"error: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize("flag", ["--json", "--crops", "--maps", "--skip-existing"])
def test_a_single_file_has_one_drawn_input(
    options: list[str], images: Path, tmp_path: Path, flag: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(predictors, "LazyPredictor", None)
    inputs = ["--input", str(images / "000.png"), "--output", str(tmp_path / "one.png")]
    assert predict.script([*options, *inputs, flag]) == 2
    assert "give a folder for --json" in capsys.readouterr().err


def test_pictures_of_images_that_cannot_be_written_are_png(
    options: list[str], tmp_path: Path
) -> None:
    Image.fromarray(np.full((32, 40), 90, dtype=np.uint8)).save(tmp_path / "a.sgi")
    inputs = ["--input", str(tmp_path / "a.sgi"), "--output", str(tmp_path / "drawn"), "--crops"]
    assert predict.script([*options, *inputs]) == 0
    assert (tmp_path / "drawn" / "a.png").is_file()
    assert {path.suffix for path in (tmp_path / "drawn" / "crops" / "a.sgi").iterdir()} == {".png"}


def test_tiles(options: list[str], tmp_path: Path, capsys) -> None:
    """A picture, json and crops of an image of four tiles."""
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "large.png"), rng.integers(0, 256, (96, 100, 3), np.uint8))
    written = ["--json", "--crops", "--output", str(tmp_path / "out")]
    inputs = [*options, "--input", str(tmp_path / "large.png"), *written]
    assert predict.script([*inputs, "--tile", "64", "--tile-overlap", "0.3"]) == 0
    assert cv2.imread(str(tmp_path / "out" / "large.png")).shape == (96, 100, 3)
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(entries) == len(list((tmp_path / "out" / "crops" / "large.png").iterdir())) > 0
    assert all(entry["segmentation"]["size"] == [96, 100] for entry in entries)
    assert max(entry["bbox"][0] for entry in entries) > 64
    again = [*inputs, "--tile", "64", "--skip-existing"]
    assert predict.script(again) == 2
    assert "tiles was {'size': 64, 'overlap': 0.3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tile-overlap", "0.3"], "--tile-overlap 0.3 needs --tile"),
        (["--tile", "0"], "the size of tiles must be a positive integer, got 0"),
        (["--tile", "64", "--tile-overlap", "1"], "overlap of tiles must be in [0, 1), got 1.0"),
    ],
)
def test_bad_tiles(options: list[str], arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        predict.script([*options, "--input", "a.png", "--output", "b.png", *arguments])
    assert message in capsys.readouterr().err
