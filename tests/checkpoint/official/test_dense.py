"""Official ATSS, GFL and Sparse R-CNN here and back, against the official key lists."""

import json
from pathlib import Path

import pytest
import torch
from dense_configs import DETECTORS
from project_configs import CONFIGS, full_size_model
from torch import Tensor

from vitadapter.checkpoint import convert_official, export_official
from vitadapter.checkpoint.families import recognise
from vitadapter.checkpoint.official.layouts import ATSS, GFL, LAYOUTS, SPARSE_RCNN

OF_DETECTOR = dict(zip(DETECTORS, (ATSS, GFL, SPARSE_RCNN), strict=True))


def _official(shared: Path, name: str) -> dict[str, Tensor]:
    file = shared / "reference" / "keys" / f"{name}_deit_adapter_small_fpn_3x_coco.json"
    shapes = json.loads(file.read_text())
    return {key: torch.empty(shape, device="meta") for key, (shape, _) in shapes.items()}


def test_every_key_list_is_here(shared: Path) -> None:
    lists = (path.stem for path in (shared / "reference" / "keys").glob("*.json"))
    heads = {name for name in lists if name.startswith(("atss", "gfl", "sparse"))}
    assert heads == {f"{name}_deit_adapter_small_fpn_3x_coco" for name in DETECTORS}


@pytest.mark.parametrize("name", DETECTORS)
def test_names_and_shapes_are_ours_and_come_back(name: str, shared: Path) -> None:
    official, layout = _official(shared, name), OF_DETECTOR[name]
    assert recognise(official).name == layout.name
    assert [other for other in LAYOUTS if other.recognises(official)] == [layout]
    conversion = convert_official(official, layout)
    assert not conversion.dropped
    (path,) = (path for path in CONFIGS if path.stem == f"{name}_vit_adapter_s_deit_3x")
    ours = full_size_model(path).state_dict()
    assert {key: tensor.shape for key, tensor in conversion.tensors.items()} == {
        key: tensor.shape for key, tensor in ours.items()
    }
    back = export_official(conversion.tensors, layout)
    assert back.keys() == official.keys()
    assert all(back[key] is official[key] for key in official)
