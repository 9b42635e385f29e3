"""Which official recipe each segmentation experiment follows, and sizes that the paper prints."""

from collections.abc import Mapping

from omegaconf import DictConfig

__all__ = ["PANOPTIC_RECIPES", "PAPER_PARAMETERS", "RECIPES", "check_mask2former"]

_BY_SIZE = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
_SMALL = ("t_deit", "s_deit", "b_deit", "b_augreg", "l_augreg", "l_uniperceiver")
# Experiment to official recipe.
RECIPES = {
    **{
        f"ADE20K/upernet_vit_adapter_{name}_160k": f"upernet_{name[2:]}_adapter_"
        f"{_BY_SIZE[name[0]]}_512_160k_ade20k"
        for name in (*_SMALL, "t_augreg")
    },
    **{
        f"ADE20K/semantic_fpn_vit_adapter_{name}_80k": f"semfpn_{name[2:]}_"
        f"{_BY_SIZE[name[0]]}_adapter_512_80k_ade20k"
        for name in _SMALL
    },
    "ADE20K/upernet_vit_adapter_light_b_deit_160k": "upernet_deit_adapter_light_base_512_160k_"
    "ade20k",
    "ADE20K/upernet_vit_adapter_l_beit_160k": "upernet_beit_adapter_large_640_160k_ade20k_ss",
    "ADE20K/upernet_vit_adapter_l_beit_160k_ms": "upernet_beit_adapter_large_640_160k_ade20k_ms",
    "ADE20K/upernet_vit_l_beit_512_160k": "upernet_beit_large_512_160k_ade20k_ss",
    "ADE20K/upernet_vit_l_beit_512_160k_ms": "upernet_beit_large_512_160k_ade20k_ms",
    **{
        f"{experiment}{suffix}": f"{recipe}_{suffix.removeprefix('_') or 'ss'}"
        for suffix in ("", "_ms")
        for experiment, recipe in {
            "COCOStuff/upernet_vit_adapter_l_beit_10k_80k": "upernet_beit_adapter_large_512_80k_"
            "cocostuff10k",
            "COCOStuff/upernet_vit_adapter_l_beit_164k_80k": "upernet_beit_adapter_large_640_80k_"
            "cocostuff164k",
            "PascalContext/upernet_vit_adapter_l_beit_80k": "upernet_beit_adapter_large_480_80k_"
            "pascal_context_59",
        }.items()
    },
}
# Experiment of Mask2Former (without mask2former_vit_adapter_) to official recipe (without
# mask2former_ and _ss).
_MASK2FORMER = {
    "ADE20K/l_beit_640_160k": "beit_adapter_large_640_160k_ade20k",
    "ADE20K/l_beit_640_160k_ms": "beit_adapter_large_640_160k_ade20k_ms",
    "ADE20K/l_beit_896_80k": "beit_adapter_large_896_80k_ade20k",
    "ADE20K/l_beit_896_80k_ms": "beit_adapter_large_896_80k_ade20k_ms",
    "ADE20K/l_beitv2_896_80k_flip": "beitv2_adapter_large_896_80k_ade20k",
    "ADE20K/l_beitv2_896_80k_ms": "beitv2_adapter_large_896_80k_ade20k_ms",
    "ADE20K/l_beitv2_896_160k": "beitv2_adapter_large_896_160k_ade20k",
    "COCOStuff/l_beit_10k_512_40k": "beit_adapter_large_512_40k_cocostuff10k",
    "COCOStuff/l_beit_10k_512_40k_ms": "beit_adapter_large_512_40k_cocostuff10k_ms",
    "COCOStuff/b_beit_10k_512_40k": "beit_adapter_base_512_40k_cocostuff10k",
    "COCOStuff/b_beit_10k_512_40k_ms": "beit_adapter_base_512_40k_cocostuff10k_ms",
    "COCOStuff/l_beit_164k_896_80k": "beit_adapter_large_896_80k_cocostuff164k",
    "COCOStuff/l_beit_164k_896_80k_ms": "beit_adapter_large_896_80k_cocostuff164k_ms",
    "COCOStuff/l_beitv2_164k_896_80k": "beitv2_adapter_large_896_80k_cocostuff164k",
    "PascalContext/l_beit_480_40k": "beit_adapter_large_480_40k_pascal_context_59",
    "PascalContext/l_beit_480_40k_ms": "beit_adapter_large_480_40k_pascal_context_59_ms",
    "PascalContext/b_beit_480_40k": "beit_adapter_base_480_40k_pascal_context_59",
    "PascalContext/b_beit_480_40k_ms": "beit_adapter_base_480_40k_pascal_context_59_ms",
    "Potsdam/l_beit_512_80k": "beit_adapter_large_512_80k_potsdam",
    "ChaseDB1/l_beit_128_40k": "beit_adapter_large_128_40k_chase_db1",
    "Cityscapes/l_beit_mapillary_896_80k": "beit_adapter_large_896_80k_mapillary",
    "Cityscapes/l_beit_896_80k": "beit_adapter_large_896_80k_cityscapes",
    "Cityscapes/l_beit_896_80k_ms": "beit_adapter_large_896_80k_cityscapes_ms",
}
RECIPES |= {
    experiment.replace("/", "/mask2former_vit_adapter_"): "mask2former_"
    + (recipe if recipe.endswith("_ms") else f"{recipe}_ss")
    for experiment, recipe in _MASK2FORMER.items()
}
PANOPTIC_RECIPES = {
    "COCOPanoptic/mask2former_vit_adapter_l_beitv2_3x": "mask2former_beitv2_adapter_large_16x1_3x_"
    "coco-panoptic"
}
# Millions, of paper table 3. Those of base are counted with position embeddings of 384 pixels,
# which DeiT does not have: 0.29 more than is built.
PAPER_PARAMETERS = {
    "semantic_fpn_vit_t_deit": 10.2,
    "semantic_fpn_vit_s_deit": 27.8,
    "semantic_fpn_vit_b_deit": 98.0 - 0.29,
    "upernet_vit_t_deit": 34.1,
    "upernet_vit_s_deit": 53.6,
    "upernet_vit_b_deit": 127.3 - 0.29,
    "upernet_vit_l_beit_640": 441,
    "upernet_vit_l_beitv2_512": 440.4,  # 441 in the paper, which is that of 640 pixels
    "upernet_vit_adapter_l_beitv2": 451,
}


def check_mask2former(cfg: DictConfig, recipe: Mapping[str, object]) -> None:
    """Holds head, losses and matching to a recipe."""
    expected = recipe["head"]["decode_head"]
    head = cfg.model.sem_seg_head
    pixel, decoder = expected["pixel_decoder"], expected["transformer_decoder"]
    assert head.pixel_decoder.embed_dim == expected["feat_channels"] == pixel["embed"]
    assert head.pixel_decoder.num_layers == pixel["layers"]
    assert head.pixel_decoder.num_heads == pixel["heads"]
    assert head.pixel_decoder.num_points == pixel["points"]
    assert head.pixel_decoder.ffn_dim == pixel["ffn"]
    assert head.predictor.num_layers == decoder["layers"]
    assert head.predictor.num_heads == decoder["heads"]
    assert head.predictor.ffn_dim == decoder["ffn"]
    assert head.predictor.num_queries == expected["num_queries"]
    assert head.predictor.num_classes == cfg.dataset.num_classes == expected["num_classes"]
    criterion = cfg.model.criterion
    weights = [expected[f"loss_{kind}"]["weight"] for kind in ("cls", "mask", "dice")]
    assert [criterion.matcher[f"{kind}_weight"] for kind in ("class", "mask", "dice")] == weights
    assert criterion.no_object_weight == expected["loss_cls"]["class_weight"]["no_object"]
    matching = recipe["head"]["matching"]
    assert criterion.matcher.num_points == matching["points"]
    assert criterion.oversample_ratio == matching["oversample_ratio"]
    assert criterion.importance_sample_ratio == matching["importance_ratio"]
    # Panoptic maps have no label to ignore.
    assert cfg.model.targets.get("ignore_value") == cfg.dataset.get("ignore_label")
