from types import ModuleType

import pytest
import torch
from detectron2.modeling import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from vitadapter.modeling.backbone import ChannelMapper, LastLevelMaxPool2x2, ViT, ViTBaseline

NAMES = ["res2", "res3", "res4", "res5"]


def _bottom_up(dim: int = 32) -> ViTBaseline:
    return ViTBaseline(ViT(embed_dim=dim, depth=4, num_heads=2))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float64, 1e-9)])
def test_outputs(golden: ModuleType, dtype: torch.dtype, tolerance: float) -> None:
    meta, keys, arrays = golden.load(golden.path("det_channel_mapper"))
    state = golden.make_state_dict(keys)
    assert golden.check_weights(keys, arrays, state) < 1e-5
    channels = meta["args"]["in_channels"][0]
    model = ChannelMapper(
        _bottom_up(channels),
        NAMES,
        out_channels=meta["args"]["out_channels"],
        top_block=LastLevelMaxPool2x2(),
    )
    # `convs.0.conv.weight` as Detectron2 names it
    convs = {key.replace(".conv.", "."): tensor for key, tensor in state.items()}
    model.load_state_dict(convs | model.bottom_up.state_dict(prefix="bottom_up."), strict=True)
    features = [
        torch.from_numpy(golden.make_input(meta["feature_seed"] + level, shape)).to(dtype)
        for level, shape in enumerate(meta["levels"])
    ]
    model.to(dtype)
    model.bottom_up.forward = lambda _: dict(zip(NAMES, features, strict=True))
    outputs = model(features)
    assert list(outputs) == ["p2", "p3", "p4", "p5", "p6"]
    assert len(outputs) == meta["args"]["num_outs"]
    for level, output in enumerate(outputs.values()):
        assert golden.compare(arrays, "r0", f"p{level}", output)["max_abs"] < tolerance


@pytest.mark.parametrize("top_block", [LastLevelMaxPool2x2, LastLevelMaxPool])
def test_shapes_are_those_of_an_fpn(top_block: type[torch.nn.Module]) -> None:
    bottom_up = _bottom_up()
    mapper = ChannelMapper(bottom_up, NAMES, 16, top_block=top_block())
    fpn = FPN(bottom_up, NAMES, 16, top_block=top_block())
    assert mapper.output_shape() == fpn.output_shape()
    assert mapper.size_divisibility == fpn.size_divisibility == 32
    assert mapper.padding_constraints == {"size_divisibility": 32}
    images = torch.randn(2, 3, 128, 192)
    shapes = {name: output.shape for name, output in mapper(images).items()}
    assert shapes == {name: output.shape for name, output in fpn(images).items()}


def test_some_features_with_a_norm() -> None:
    mapper = ChannelMapper(_bottom_up(), ["res3", "res5"], 32, norm="GN")
    assert list(mapper.output_shape()) == ["p3", "p5"]
    assert mapper.convs[0].bias is None
    outputs = mapper(torch.randn(1, 3, 64, 64))
    assert outputs["p5"].shape == (1, 32, 2, 2)
    assert outputs["p5"].min() >= 0


@pytest.mark.parametrize(("size", "expected"), [((5, 4), (2, 2)), ((1, 3), (1, 1))])
def test_a_single_row_is_kept(size: tuple[int, int], expected: tuple[int, int]) -> None:
    (output,) = LastLevelMaxPool2x2()(torch.randn(1, 4, *size))
    assert output.shape[2:] == expected


@pytest.mark.parametrize(
    ("in_features", "out_channels"), [([], 8), (["res1"], 8), (["res2", "p2"], 8), (NAMES, 0)]
)
def test_bad_arguments(in_features: list[str], out_channels: int) -> None:
    with pytest.raises(ValueError, match=r"in_features must be some of \['res2'"):
        ChannelMapper(_bottom_up(), in_features, out_channels)
