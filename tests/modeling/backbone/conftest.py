"""Our modules for the golden files' official arguments."""

from collections.abc import Callable
from functools import partial

import pytest
from detectron2.modeling import Backbone
from torch import nn

from vitadapter.modeling.backbone import BEiT, UniPerceiver, ViT, ViTAdapter, ViTBaseline

GoldenMeta = dict[str, object]


def _windows(args: GoldenMeta) -> list[int]:
    windowed = args.get("window_attn", [False] * args["depth"])
    return [i for i, in_windows in enumerate(windowed) if in_windows]


def _vit(args: GoldenMeta) -> ViT:
    return ViT(
        embed_dim=args["embed_dim"],
        depth=args["depth"],
        num_heads=args["num_heads"],
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        window_size=14,
        window_block_indexes=_windows(args),
        residual_block_indexes=args.get("residual_indices", []),
        pretrain_img_size=args.get("pretrain_size", 224),
        pad_after_qkv=True,
        layer_scale_init=1.0 if args.get("layer_scale", True) else None,
    )


def _beit(args: GoldenMeta) -> BEiT:
    windows = _windows(args)
    return BEiT(
        img_size=args["img_size"],
        embed_dim=args["embed_dim"],
        depth=args["depth"],
        num_heads=args["num_heads"],
        use_cls_token=not windows,
        window_size=[args["window_size"][i] for i in windows] if windows else 0,
        window_block_indexes=windows,
        layer_scale_init=args["init_values"],
    )


def _uni_perceiver(args: GoldenMeta) -> UniPerceiver:
    return UniPerceiver(
        embed_dim=args["embed_dim"],
        depth=args["depth"],
        num_heads=args["num_heads"],
        window_size=14,
        window_block_indexes=_windows(args),
    )


def _build(meta: GoldenMeta) -> Backbone:
    args = meta["args"]
    codebase, official_class = meta["official_class"].split("/")
    if official_class == "ViTBaseline":
        return ViTBaseline(_vit(args), block_indexes=args.get("out_indices"))
    build_net, eps = {
        "ViTAdapter": (_vit, 1e-6),
        "BEiTAdapter": (_beit, 1e-6),
        "UniPerceiverAdapter": (_uni_perceiver, 1e-5),
    }[official_class]
    final = codebase == "detection" and args.get("version") != "old"
    return ViTAdapter(
        build_net(args),
        interaction_indexes=args["interaction_indexes"],
        deform_num_heads=args["deform_num_heads"],
        deform_ratio=args["deform_ratio"],
        num_extra_extractors=2 if args.get("use_extra_extractor", True) else 0,
        norm_layer=partial(nn.LayerNorm, eps=eps),
        vit_feature="final" if final else "stage",
    )


@pytest.fixture(scope="session")
def build_golden() -> Callable[[GoldenMeta], Backbone]:
    """Makes the backbone that a golden file's meta data describes, with random weights."""
    return _build
