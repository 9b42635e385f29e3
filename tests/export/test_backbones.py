"""Adapters around every kind of net, as programs for images of any size and as ONNX."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from exported_models import predictor_of
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from tensorrt_operators import unsupported
from torch import Tensor, nn

from vitadapter.export.description import describe
from vitadapter.export.formats import FORMATS
from vitadapter.export.graphs import BackboneGraph
from vitadapter.export.programs import program_of
from vitadapter.modeling.backbone import BEiT, TimmViT, UniPerceiver, ViT, ViTAdapter
from vitadapter.ops import MSDeformAttn, ms_deform_attn

TINY = dict(embed_dim=16, depth=2, num_heads=2)
IN_WINDOWS = dict(window_size=3, window_block_indexes=[0])
ONE_BLOCK = TINY | dict(depth=1)
# Tracing is slow: windows of `ViT` are in the adapter's test.
NETS: dict[str, Callable[[], Backbone]] = {
    "vit": partial(ViT, img_size=64, use_rel_pos=True, **ONE_BLOCK),
    "uni_perceiver": partial(UniPerceiver, pretrain_img_size=64, **TINY, **IN_WINDOWS),
    "beit": partial(BEiT, global_window_size=4, **TINY, **IN_WINDOWS),
    "dinov3": partial(TimmViT, "vit_small_patch16_dinov3", **ONE_BLOCK),
    "dinov2": partial(TimmViT, "vit_small_patch14_reg4_dinov2", pretrain_img_size=64, **ONE_BLOCK),
    "eva02": partial(TimmViT, "eva02_tiny_patch14_224", pretrain_img_size=64, **ONE_BLOCK),
    "mixed": partial(TimmViT, "vit_small_patch16_rope_mixed_224", pretrain_img_size=64, **TINY),
}
SIZES = [(64, 96), (160, 64), (480, 256)]


class OneMap(Backbone):
    """The output of a net, with the size that a backbone asks for."""

    def __init__(self, net: Backbone) -> None:
        super().__init__()
        self.net = net

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.net(images)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.net.output_shape()


class Model(nn.Module):
    """What a `BackboneGraph` needs."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 120.0))
        self.register_buffer("pixel_std", torch.full((3, 1, 1), 60.0))


def _with_values(model: nn.Module) -> nn.Module:
    """A model without zeros, which would hide a part of it."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
        elif "gamma" in name:
            nn.init.constant_(parameter, 0.5)
    return model.eval().requires_grad_(False)  # which makes tracing faster


def _adapter() -> Model:
    backbone = ViTAdapter(
        ViT(**ONE_BLOCK, window_size=14, window_block_indexes=[0]),  # one window or several
        num_interactions=1,
        num_extra_extractors=0,
        conv_dim=4,
        deform_num_heads=2,
        norm="BN",
    )
    return _with_values(Model(backbone))


def _check(model: Model, compute: Callable[[Tensor], list[Tensor]]) -> None:
    for batch, size in enumerate(SIZES, start=1):
        images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)
        with torch.no_grad():
            expected = model.backbone((images - model.pixel_mean) / model.pixel_std)
        for found, value in zip(compute(images), expected.values(), strict=True):
            scale = float(value.abs().max())
            torch.testing.assert_close(found, value, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("net", NETS)
def test_nets_take_any_size(net: str) -> None:
    model = _with_values(Model(OneMap(NETS[net]())))
    program = program_of(BackboneGraph(model)).module()
    _check(model, lambda images: program(images, torch.tensor(images.shape[2:])))


def test_adapters_in_every_format(tmp_path: Path) -> None:
    model = _adapter()
    graph = BackboneGraph(model)
    program = program_of(graph)
    targets = [str(node.target) for node in program.graph.nodes]
    attentions = sum(isinstance(part, MSDeformAttn) for part in model.modules())
    assert targets.count("vitadapter.ms_deform_attn_fused.default") == attentions == 2
    description = describe(predictor_of(model), graph, None)
    for name in ("torch", "onnx"):
        file = tmp_path / f"backbone{FORMATS[name].suffix}"
        FORMATS[name].write(program, description, file)
        _check(model, FORMATS[name].read(file)[0])
    proto = onnx.load(tmp_path / "backbone.onnx")
    onnx.checker.check_model(proto, full_check=True)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("GridSample") == 4  # one for each level that is read
    # Not as powers and means, which overflow in half precision.
    assert "LayerNormalization" in kinds
    assert "Pow" not in kinds


class Attention(OneMap):
    """Deformable attention of an image's pixels to two maps."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.attention = MSDeformAttn(8, num_heads=2, num_levels=2, num_points=3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [F.avg_pool2d(images, side) for side in (8, 16)]
        shapes = [(pooled.shape[2], pooled.shape[3]) for pooled in maps]
        tokens = torch.cat([pooled.flatten(2) for pooled in maps], dim=2).transpose(1, 2)
        tokens = F.pad(tokens, (0, 5))
        points = torch.linspace(0.1, 0.9, 14).reshape(1, 7, 1, 2)
        queries = tokens[:, :7]
        return {"x": self.attention(queries, points.expand(1, 7, 2, 2), tokens, shapes)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"x": ShapeSpec(channels=8, stride=1)}


class MultiscaleDeformableAttnPlugin_TRT(OpRun):  # noqa: N801  the node's name
    """What TensorRT's plugin computes, by our operator."""

    op_domain = "trt.plugins"

    def _run(self, value, shapes, starts, locations, weights):
        assert shapes.dtype == starts.dtype == np.int32
        sides = shapes.prod(axis=1)
        assert starts.tolist() == [0, *sides.cumsum()[:-1]]
        assert value.shape[1] == sides.sum()
        tensors = (torch.from_numpy(array.copy()) for array in (value, locations, weights))
        value, locations, weights = tensors
        output = ms_deform_attn(
            value, [tuple(side) for side in shapes.tolist()], locations, weights
        )
        return (output.reshape(value.shape[0], -1, *value.shape[2:]).numpy(),)


def test_the_node_of_tensorrt(tmp_path: Path) -> None:
    model = _with_values(Model(Attention()))
    graph = BackboneGraph(model)
    description = describe(predictor_of(model), graph, None)
    FORMATS["tensorrt"].write(program_of(graph), description, tmp_path / "tensorrt.onnx")
    proto = onnx.load(tmp_path / "tensorrt.onnx")
    onnx.checker.check_model(proto)
    assert unsupported(proto) == set()
    evaluator = ReferenceEvaluator(proto, new_ops=[MultiscaleDeformableAttnPlugin_TRT])

    def compute(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(x) for x in evaluator.run(None, {"images": images.numpy()})]

    _check(model, compute)


def test_what_a_trace_has_fixed_is_refused() -> None:
    class Fixed(OneMap):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            features = self.net(images)["last_feat"]
            return {"last_feat": features / float(features.shape[2])}

    graph = BackboneGraph(_with_values(Model(Fixed(NETS["dinov2"]()))))
    with pytest.raises(ValueError, match=r"was traced for one size \(.* == .*\): give one"):
        program_of(graph)


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (partial(BEiT, img_size=64, **ONE_BLOCK), "BEiT's global attention"),
        (
            partial(TimmViT, "vit_small_patch16_dinov3", **ONE_BLOCK, **IN_WINDOWS),
            "TimmViT with windows",
        ),
    ],
)
def test_nets_that_take_one_size(net: Callable[[], Backbone], what: str) -> None:
    graph = BackboneGraph(_with_values(Model(OneMap(net()))))
    with pytest.raises(ValueError, match=f"{what} cannot be exported for images of any size"):
        program_of(graph)
    assert program_of(graph, (64, 96)).graph is not None
