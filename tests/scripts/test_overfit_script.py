"""`scripts/overfit_detector.py` can cut every detector down."""

import importlib.util
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from project_configs import CONFIGS, count_parameters, load


@pytest.mark.parametrize(
    "stem",
    [
        "atss_vit_s_deit_3x",
        "cascade_mask_rcnn_vit_adapter_s_deit_3x",
        "htcpp_vit_adapter_l_beit_3x",
        "sparse_rcnn_vit_adapter_s_deit_3x",
    ],
)
def test_cuts_every_detector_down(stem: str, repository: Path) -> None:
    script = repository / "scripts" / "overfit_detector.py"
    spec = importlib.util.spec_from_file_location("overfit_detector", script)
    overfit_detector = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(overfit_detector)
    cfg = load(next(path for path in CONFIGS if path.stem == stem))
    overfit_detector.cut_down(cfg)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert count_parameters(model) < 12e6
