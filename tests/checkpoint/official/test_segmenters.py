"""Official UPerNet and Semantic FPN files to our models and back, over the official key lists."""

import json
from pathlib import Path

import pytest
import torch
from project_configs import SEGMENTATION_CONFIGS, full_size_model
from torch import Tensor

from vitadapter.checkpoint import convert_official, export_official
from vitadapter.checkpoint.families import recognise
from vitadapter.checkpoint.loading import check_plan, plan_load
from vitadapter.checkpoint.official.layouts import LAYOUTS, SEMANTIC_FPN, UPERNET

# Our experiment for each list of official names.
EXPERIMENTS = {
    "semfpn_tiny": "semantic_fpn_vit_adapter_t_deit_80k",
    "semfpn_small": "semantic_fpn_vit_adapter_s_deit_80k",
    "semfpn_base": "semantic_fpn_vit_adapter_b_deit_80k",
    "semfpn_augreg_base": "semantic_fpn_vit_adapter_b_augreg_80k",
    "semfpn_augreg_large": "semantic_fpn_vit_adapter_l_augreg_80k",
    "semfpn_uniperceiver_large": "semantic_fpn_vit_adapter_l_uniperceiver_80k",
    "upernet_augreg_adapter_tiny_512_160k_ade20k": "upernet_vit_adapter_t_augreg_160k",
    "upernet_augreg_adapter_base_512_160k_ade20k": "upernet_vit_adapter_b_augreg_160k",
    "upernet_augreg_adapter_large_512_160k_ade20k": "upernet_vit_adapter_l_augreg_160k",
    "upernet_deit_adapter_small_512_160k_ade20k": "upernet_vit_adapter_s_deit_160k",
    "upernet_deit_adapter_base_512_160k_ade20k": "upernet_vit_adapter_b_deit_160k",
    "upernet_deit_adapter_light_base_512_160k_ade20k": "upernet_vit_adapter_light_b_deit_160k",
    "upernet_uniperceiver_adapter_large_512_160k_ade20k": "upernet_vit_adapter_l_uniperceiver_160k",
    "upernet_beit_adapter_large_640_160k_ade20k_ms": "upernet_vit_adapter_l_beit_160k",
    "upernet_beit_large_512_160k_ade20k_ms": "upernet_vit_l_beit_512_160k",
    "upernet_beit_adapter_large_512_80k_cocostuff10k_ms": "upernet_vit_adapter_l_beit_10k_80k",
    "upernet_beit_adapter_large_640_80k_cocostuff164k_ms": "upernet_vit_adapter_l_beit_164k_80k",
    "upernet_beit_adapter_large_480_80k_pascal_context_59_ms": "upernet_vit_adapter_l_beit_80k",
}
PATHS = {path.stem: path for path in SEGMENTATION_CONFIGS}


def make_official(shared: Path, name: str, device: str) -> dict[str, Tensor]:
    """Tensors of the official names and shapes; on the CPU one number per tensor, expanded."""
    shapes = json.loads((shared / "reference" / "keys" / f"{name}.json").read_text())
    if device == "meta":
        return {key: torch.empty(shape, device="meta") for key, (shape, _) in shapes.items()}
    return {
        key: torch.full((1,), float(i)).expand(shape) if shape else torch.tensor(float(i))
        for i, (key, (shape, _)) in enumerate(shapes.items())
    }


def test_every_key_list_has_an_experiment(shared: Path) -> None:
    folder = shared / "reference" / "keys"
    lists = {path.stem for kind in ("upernet", "semfpn") for path in folder.glob(f"{kind}_*.json")}
    assert lists == set(EXPERIMENTS)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_names_and_shapes_are_ours_and_come_back(name: str, shared: Path) -> None:
    official = make_official(shared, name, "meta")
    layout = UPERNET if name.startswith("upernet") else SEMANTIC_FPN
    assert [found.name for found in LAYOUTS if found.recognises(official)] == [layout.name]
    assert recognise(official).name == layout.name
    conversion = convert_official(official, layout)
    ours = full_size_model(PATHS[EXPERIMENTS[name]]).state_dict()
    # Indices of BEiT's bias tables follow from the tables' sizes.
    assert all(key.endswith("relative_position_index") for key in conversion.dropped)
    assert {n: t.shape for n, t in conversion.tensors.items()} == {
        n: t.shape for n, t in ours.items() if not n.endswith("relative_position_index")
    }
    back = export_official(conversion.tensors, layout)
    assert back.keys() == official.keys() - conversion.dropped.keys()
    assert all(back[key] is official[key] for key in back)


@pytest.mark.parametrize("name", ["semfpn_tiny", "upernet_augreg_adapter_tiny_512_160k_ade20k"])
def test_a_file_loads_completely(name: str, shared: Path) -> None:
    official = make_official(shared, name, "cpu")
    model = full_size_model(PATHS[EXPERIMENTS[name]])
    layout = UPERNET if name.startswith("upernet") else SEMANTIC_FPN
    conversion = convert_official(official, layout)
    plan = plan_load(model, official, name, resize=False)
    check_plan(plan, model, complete=True)
    assert plan.report.family == layout.name
    back = export_official(conversion.tensors, layout)
    for key, tensor in official.items():
        torch.testing.assert_close(back[key], tensor, rtol=0, atol=0)
