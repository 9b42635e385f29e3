"""Our modules for the golden files' official arguments."""

from collections.abc import Callable
from functools import partial

import pytest
from torch import nn

from vitadapter.modeling.backbone import ViT, ViTAdapter, ViTBaseline

GoldenMeta = dict[str, object]


def _net(args: GoldenMeta) -> ViT:
    windowed = args.get("window_attn", [False] * args["depth"])
    return ViT(
        embed_dim=args["embed_dim"],
        depth=args["depth"],
        num_heads=args["num_heads"],
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        window_size=14,
        window_block_indexes=[i for i, in_windows in enumerate(windowed) if in_windows],
        residual_block_indexes=args.get("residual_indices", []),
        pretrain_img_size=args.get("pretrain_size", 224),
        pad_after_qkv=True,
        layer_scale_init=1.0 if args.get("layer_scale", True) else None,
    )


def _build(meta: GoldenMeta) -> ViTAdapter | ViTBaseline:
    args = meta["args"]
    if meta["official_class"].endswith("ViTBaseline"):
        return ViTBaseline(_net(args), block_indexes=args.get("out_indices"))
    return ViTAdapter(
        _net(args),
        interaction_indexes=args["interaction_indexes"],
        deform_num_heads=args["deform_num_heads"],
        deform_ratio=args["deform_ratio"],
        num_extra_extractors=2 if args.get("use_extra_extractor", True) else 0,
        vit_feature="final" if meta["official_class"].startswith("detection") else "stage",
    )


@pytest.fixture(scope="session")
def build_golden() -> Callable[[GoldenMeta], ViTAdapter | ViTBaseline]:
    """Makes the backbone that a golden file's meta data describes, with random weights."""
    return _build
