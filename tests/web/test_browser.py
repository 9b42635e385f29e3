"""The page in headless Chromium, driven by playwright-core (CONTRIBUTING.md: how to get them)."""

import json
import os
import subprocess
from pathlib import Path

import cv2
import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

pytest.importorskip("gradio")

from vitadapter.commands.predict import predict
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.predictions import Selection, in_words
from vitadapter.web import Limits, serving


class Counting:
    """Counts the images that a predictor is given."""

    def __init__(self, predictor: LazyPredictor) -> None:
        self._predictor = predictor
        self.metadata = predictor.metadata
        self.count = 0

    def __call__(self, image):
        self.count += 1
        return self._predictor(image)


def test_an_upload_is_detected_and_downloaded(
    cfg: DictConfig,
    tiny_config: Path,
    overrides: list[str],
    browser: str,
    node_path: str,
    repository: Path,
    tmp_path: Path,
) -> None:
    torch.manual_seed(1)
    weights = tmp_path / "weights.pth"
    torch.save({"model": instantiate(cfg.model).state_dict()}, weights)
    predictor = Counting(LazyPredictor(cfg, str(weights)))
    photo = next(Path(cfg.dataset.test.image_root).glob("*.png"))
    found = predictor(cv2.imread(str(photo)))
    palette = Palette(predictor.metadata.thing_classes)
    (tmp_path / "damaged.png").write_bytes(photo.read_bytes()[:100])

    script = repository / "tests" / "helpers" / "page_visit.cjs"
    with serving(predictor, "tiny", Limits(), "127.0.0.1", None) as address:
        arguments = [address, browser, photo, tmp_path / "damaged.png", tmp_path]
        done = subprocess.run(
            ["node", script, *arguments],
            env={**os.environ, "NODE_PATH": node_path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["elsewhere"] == seen["errors"] == []
    expected = [in_words(Selection(least)(found), palette) for least in (0.5, 0)]
    assert seen["words"] == [*expected, "nothing", ""]
    assert "damaged.png cannot be read" in seen["message"]
    assert predictor.count == 2, "once here, and once for the upload"

    chosen = ["--score-threshold", "0", "--json", "--output", str(tmp_path / "drawn")]
    changes = ["--overrides", *overrides]
    assert (
        predict([str(tiny_config), str(photo), "--weights", str(weights), *chosen, *changes]) == 0
    )
    for name, downloaded in (
        (photo.name, f"{photo.stem}_drawn.png"),
        ("predictions.json", "predictions.json"),
    ):
        assert (tmp_path / downloaded).read_bytes() == (tmp_path / "drawn" / name).read_bytes()
