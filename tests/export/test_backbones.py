"""Adapters around every kind of net, as programs for images of any size and as ONNX."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from exported_models import predictor_of
from torch import Tensor, nn

from vitadapter.export.description import describe
from vitadapter.export.graphs import BackboneGraph
from vitadapter.export.programs import program_of
from vitadapter.export.runtimes import FORMATS
from vitadapter.modeling.backbone import BEiT, TimmViT, UniPerceiver, ViT, ViTAdapter
from vitadapter.ops import MSDeformAttn

TINY = dict(embed_dim=16, depth=2, num_heads=2)
IN_WINDOWS = dict(window_size=3, window_block_indexes=[0])
NETS: dict[str, Callable[[], Backbone]] = {
    "vit": partial(ViT, img_size=64, use_rel_pos=True, **TINY, **IN_WINDOWS),
    "uni_perceiver": partial(UniPerceiver, pretrain_img_size=64, **TINY, **IN_WINDOWS),
    "beit": partial(BEiT, global_window_size=4, **TINY, **IN_WINDOWS),
    "dinov3": partial(TimmViT, "vit_small_patch16_dinov3", **TINY),
    "dinov2": partial(TimmViT, "vit_small_patch14_reg4_dinov2", pretrain_img_size=64, **TINY),
    "eva02": partial(TimmViT, "eva02_tiny_patch14_224", pretrain_img_size=64, **TINY),
}
SIZES = [(64, 96), (160, 64), (224, 224)]


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
    return model.eval()


def _adapter() -> Model:
    backbone = ViTAdapter(
        ViT(**TINY, **IN_WINDOWS),
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
    FORMATS["tensorrt"].write(program, description, tmp_path / "tensorrt.onnx")
    for file, operator in (("backbone", "GridSample"), ("tensorrt", "Multiscale")):
        proto = onnx.load(tmp_path / f"{file}.onnx")
        onnx.checker.check_model(proto, full_check=file == "backbone")
        kinds = [node.op_type for node in proto.graph.node]
        levels = 4 if operator == "GridSample" else 2
        assert sum(kind.startswith(operator) for kind in kinds) == levels
    (first, *_) = [n for n in proto.graph.node if n.op_type.startswith("Multiscale")]
    assert first.op_type == "MultiscaleDeformableAttnPlugin_TRT"
    assert len(first.input) == 5
    assert first.domain == "trt.plugins"


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (partial(BEiT, img_size=64, **TINY), "BEiT's global attention"),
        (
            partial(TimmViT, "vit_small_patch16_dinov3", **TINY, **IN_WINDOWS),
            "TimmViT with windows",
        ),
    ],
)
def test_nets_that_take_one_size(net: Callable[[], Backbone], what: str) -> None:
    graph = BackboneGraph(_with_values(Model(OneMap(net()))))
    with pytest.raises(ValueError, match=f"{what} cannot be exported for images of any size"):
        program_of(graph)
    assert program_of(graph, (64, 96)).graph is not None
