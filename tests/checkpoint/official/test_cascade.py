"""Official Cascade Mask R-CNN and HTC++ here and back, against the official key lists."""

import json
from pathlib import Path

import pytest
import torch
from project_configs import CONFIGS, full_size_model
from torch import Tensor

from vitadapter.checkpoint import OfficialLayout, convert_official, export_official
from vitadapter.checkpoint.families import recognise
from vitadapter.checkpoint.official.layouts import CASCADE_MASK_RCNN, HTC, LAYOUTS

# Our experiment for each key list.
EXPERIMENTS = {
    "cascade_mask_rcnn_deit_adapter_base_fpn_3x_coco": "cascade_mask_rcnn_vit_adapter_b_deit_3x",
    "cascade_mask_rcnn_deit_adapter_small_fpn_3x_coco": "cascade_mask_rcnn_vit_adapter_s_deit_3x",
    "cascade_mask_rcnn_deit_base_fpn_3x_coco": "cascade_mask_rcnn_vit_b_deit_3x",
    "htc++_augreg_adapter_large_fpn_3x_coco": "htcpp_vit_adapter_l_augreg_3x",
    "htc++_beit_adapter_large_fpn_3x_coco": "htcpp_vit_adapter_l_beit_3x",
    "htc++_beitv2_adapter_large_fpn_o365_coco": "htcpp_vit_adapter_l_beitv2_o365",
    "htc++_uniperceiver_adapter_large_fpn_3x_coco": "htcpp_vit_adapter_l_uniperceiver_3x",
}
each_list = pytest.mark.parametrize("name", sorted(EXPERIMENTS))


def _official(shared: Path, name: str) -> dict[str, Tensor]:
    shapes = json.loads((shared / "reference" / "keys" / f"{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, (shape, _) in shapes.items()}


def _layout(name: str) -> OfficialLayout:
    return HTC if name.startswith("htc") else CASCADE_MASK_RCNN


def test_every_key_list_is_here(shared: Path) -> None:
    lists = (shared / "reference" / "keys").glob("*.json")
    heads = {path.stem for path in lists if path.stem.startswith(("cascade", "htc"))}
    assert heads == set(EXPERIMENTS)


@each_list
def test_names_and_shapes_are_ours_and_come_back(name: str, shared: Path) -> None:
    official = _official(shared, name)
    conversion = convert_official(official, _layout(name))
    (experiment,) = (path for path in CONFIGS if path.stem == EXPERIMENTS[name])
    ours = full_size_model(experiment).state_dict()
    assert {key: tensor.shape for key, tensor in conversion.tensors.items()} == {
        key: tensor.shape for key, tensor in ours.items()
    }
    assert all(key.endswith(".relative_position_index") for key in conversion.dropped)
    back = export_official(conversion.tensors, _layout(name))
    assert back.keys() == official.keys() - conversion.dropped.keys()
    assert all(tensor is official[key] for key, tensor in back.items())


@each_list
def test_is_recognised(name: str, shared: Path) -> None:
    official = _official(shared, name)
    assert [layout for layout in LAYOUTS if layout.recognises(official)] == [_layout(name)]
    assert recognise(official).name == _layout(name).name
