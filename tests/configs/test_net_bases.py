"""The bases of BEiT and Uni-Perceiver follow the official recipes."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from project_configs import count_parameters

from vitadapter.model_zoo import get_config

Recipe = dict[str, object]
DETECTOR_OF_BEIT = "htc++_beit_adapter_large_fpn_3x_coco"
# file, base, recipe with the same backbone
BASES = [
    ("beit", "vit_adapter_beit_large", DETECTOR_OF_BEIT),
    ("beit", "vit_adapter_beit_large", "mask2former_beitv2_adapter_large_16x1_3x_coco-panoptic"),
    (
        "beit",
        "vit_adapter_beit_base_global",
        "mask2former_beit_adapter_base_512_40k_cocostuff10k_ss",
    ),
    (
        "beit",
        "vit_adapter_beit_large_global",
        "upernet_beit_adapter_large_512_80k_cocostuff10k_ss",
    ),
    ("beit", "vit_baseline_beit_large_global", "upernet_beit_large_512_160k_ade20k_ss"),
    (
        "uni_perceiver",
        "vit_adapter_uni_perceiver_base",
        "mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco",
    ),
    (
        "uni_perceiver",
        "vit_adapter_uni_perceiver_large",
        "htc++_uniperceiver_adapter_large_fpn_3x_coco",
    ),
    (
        "uni_perceiver",
        "vit_adapter_uni_perceiver_large_global",
        "upernet_uniperceiver_adapter_large_512_160k_ade20k",
    ),
]


@pytest.mark.parametrize(("file", "base", "recipe"), BASES)
def test_follows_its_recipe(
    file: str, base: str, recipe: str, recipes: dict[str, Recipe], shared: Path
) -> None:
    expected = recipes[recipe]["backbone"]
    cfg = get_config(f"common/models/{file}.py")[base]
    net = cfg.net
    for key in ("patch_size", "embed_dim", "depth", "num_heads", "drop_path_rate"):
        assert net[key] == expected[key], key
    assert net.layer_scale_init == expected["vit_layer_scale_init"]
    assert net.norm_layer.keywords["eps"] == expected["layernorm_eps"]
    large = net.get("global_window_size", 0) or None
    windows = [
        net.window_size if i in net.window_block_indexes else large for i in range(net.depth)
    ]
    assert windows == expected["window_size"]
    if file == "beit":
        assert net.use_cls_token == expected["cls_token"]
        assert net.img_size == expected["img_size"]
    else:
        assert net.pretrain_img_size == expected["pretrain_size"]
    with torch.device("meta"):
        model = instantiate(cfg)
    index = json.loads((shared / "reference" / "keys" / "index.json").read_text())
    assert f"{count_parameters(model) / 1e6:.3f}" == f"{index[recipe]['backbone_M']:.3f}"
    if "adapter" not in expected:
        assert list(model.block_indexes) == expected["out_indices"]
        return
    adapter = expected["adapter"]
    assert cfg.deform_num_heads == adapter["deform_num_heads"]
    assert cfg.deform_ratio == adapter["deform_ratio"]
    assert cfg.drop_path_rate == net.drop_path_rate
    assert cfg.get("injector_gamma_init", 0.0) == adapter["injector_gamma_init"]
    assert [[start, stop - 1] for start, stop in model.stages] == adapter["interaction_indexes"]
    assert model.interactions[0].injector.query_norm.eps == expected["layernorm_eps"]
    final = "final" in adapter["vit_feature_source"]
    assert cfg.vit_feature == ("final" if final else "stage")


def test_editing_a_base_leaves_the_others_alone() -> None:
    cfg = get_config("common/models/beit.py")
    cfg.vit_adapter_beit_large.net.embed_dim = 7
    cfg.vit_adapter_beit_large_global.net.img_size = 96
    assert cfg.beit_large.embed_dim == cfg.beit_large_global.embed_dim == 1024
    assert cfg.vit_baseline_beit_large_global.net.img_size == 512
    assert cfg.vit_adapter_large.net.embed_dim == 1024
