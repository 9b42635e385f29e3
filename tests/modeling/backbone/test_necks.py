from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.modeling import FPN
from detectron2.modeling import SimpleFeaturePyramid as Detectron2SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import ImageList
from golden_heads import GoldenHead, StoredFeatures
from torch import nn

from vitadapter.checkpoint.official.layouts import ATSS_ROWS
from vitadapter.modeling.backbone import (
    ChannelMapper,
    ExtraAttention,
    LastLevelConvs,
    LastLevelMaxPool2x2,
    SimpleFeaturePyramid,
    ViT,
    ViTAdapter,
    ViTBaseline,
)

NAMES = ["res2", "res3", "res4", "res5"]
IN_BOTH_TYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float64, 1e-9)]
)


def _net(depth: int = 4) -> ViT:
    return ViT(embed_dim=32, depth=depth, num_heads=2)


def _bottom_up() -> ViTBaseline:
    return ViTBaseline(_net())


def test_the_official_neck_of_atss(golden: ModuleType) -> None:
    head = GoldenHead(golden, "mmdet2_fpn_atss")
    fpn = FPN(
        bottom_up=head.features("res2"),  # the stride-4 map is not used
        in_features=["res3", "res4", "res5"],
        out_channels=256,
        top_block=LastLevelConvs(256, 256),
    )
    head.load(fpn, ATSS_ROWS, ("neck.", "backbone."))
    with torch.no_grad():
        outputs = fpn(torch.empty(0))
    assert list(outputs) == ["p3", "p4", "p5", "p6", "p7"]
    for i, level in enumerate(outputs.values()):
        assert head.difference(f"p{i}", level) < 5e-5
        assert fpn.output_shape()[f"p{i + 3}"].stride == 2 ** (i + 3)


@pytest.mark.parametrize(("size", "expected"), [((5, 4), (2, 2)), ((1, 3), (1, 1))])
def test_max_pooling_keeps_a_single_row(size: tuple[int, int], expected: tuple[int, int]) -> None:
    (output,) = LastLevelMaxPool2x2()(torch.randn(1, 4, *size))
    assert output.shape[2:] == expected


class TestChannelMapper:
    @IN_BOTH_TYPES
    def test_outputs(self, golden: ModuleType, dtype: torch.dtype, tolerance: float) -> None:
        head = GoldenHead(golden, "det_channel_mapper")
        args = head.meta["args"]
        features, pool = head.features("res2", dtype), LastLevelMaxPool2x2()
        mapper = ChannelMapper(features, NAMES, args["out_channels"], top_block=pool)
        # `convs.0.conv.weight` as Detectron2 names it
        state = {key.replace(".conv.", "."): tensor for key, tensor in head.state_dict.items()}
        mapper.load_state_dict(state, strict=True)
        outputs = mapper.to(dtype)(torch.empty(0))
        assert list(outputs) == ["p2", "p3", "p4", "p5", "p6"]
        assert len(outputs) == args["num_outs"]
        for level, output in enumerate(outputs.values()):
            assert head.difference(f"p{level}", output) < tolerance

    @pytest.mark.parametrize("top_block", [LastLevelMaxPool2x2, LastLevelMaxPool])
    def test_shapes_are_those_of_an_fpn(self, top_block: type[nn.Module]) -> None:
        bottom_up = _bottom_up()
        mapper = ChannelMapper(bottom_up, NAMES, 16, top_block=top_block())
        fpn = FPN(bottom_up, NAMES, 16, top_block=top_block())
        assert mapper.output_shape() == fpn.output_shape()
        assert mapper.size_divisibility == fpn.size_divisibility == 32
        assert mapper.padding_constraints == {"size_divisibility": 32}
        images = torch.randn(2, 3, 128, 192)
        shapes = {name: output.shape for name, output in mapper(images).items()}
        assert shapes == {name: output.shape for name, output in fpn(images).items()}

    def test_some_features_with_a_norm(self) -> None:
        mapper = ChannelMapper(_bottom_up(), ["res3", "res5"], 32, norm="GN")
        assert list(mapper.output_shape()) == ["p3", "p5"]
        assert mapper.convs[0].bias is None
        outputs = mapper(torch.randn(1, 3, 64, 64))
        assert outputs["p5"].shape == (1, 32, 2, 2)
        assert outputs["p5"].min() >= 0

    @pytest.mark.parametrize(
        ("in_features", "out_channels"), [([], 8), (["res1"], 8), (["res2", "p2"], 8), (NAMES, 0)]
    )
    def test_bad_arguments(self, in_features: list[str], out_channels: int) -> None:
        with pytest.raises(ValueError, match=r"in_features must be some of \['res2'"):
            ChannelMapper(_bottom_up(), in_features, out_channels)


class TestExtraAttention:
    def load(self, golden: ModuleType, dtype: torch.dtype) -> tuple[GoldenHead, ExtraAttention]:
        """The official layer, on features that take gradients."""
        head = GoldenHead(golden, "det_extra_attention")
        (run,), args = head.meta["runs"], head.meta["args"]
        inputs = map(golden.make_input, run["input_seed"], run["input_shape"])
        inputs = [torch.from_numpy(x).to(dtype).requires_grad_() for x in inputs]
        extra = ExtraAttention(
            StoredFeatures(dict(zip(NAMES, inputs, strict=True)), [4, 8, 16, 32]),
            num_heads=args["num_head"],
            ffn_ratio=args["ffn_ratio"] if args["with_ffn"] else 0,
            drop_path_rate=args["drop_path"],
        )
        extra.load_state_dict(head.state_dict, strict=True)  # the official names are ours
        return head, extra.to(dtype).eval()

    @IN_BOTH_TYPES
    def test_outputs(self, golden: ModuleType, dtype: torch.dtype, tolerance: float) -> None:
        head, extra = self.load(golden, dtype)
        outputs = extra(torch.empty(0))
        assert list(outputs) == NAMES
        for i, output in enumerate(outputs.values(), start=1):
            assert head.difference(f"f{i}", output) < tolerance

    @pytest.mark.parametrize("use_act_checkpoint", [False, True])
    def test_gradients(self, golden: ModuleType, use_act_checkpoint: bool) -> None:
        head, extra = self.load(golden, torch.float64)
        extra.use_act_checkpoint = use_act_checkpoint
        objective = sum(
            (output * torch.from_numpy(golden.make_input(9001 + j, output.shape)).double()).sum()
            for j, output in enumerate(extra(torch.empty(0)).values())
        )
        objective.backward()
        assert objective.item() == pytest.approx(float(head.arrays["r0_objective"]), rel=1e-9)
        inputs = extra.bottom_up(torch.empty(0)).values()
        found = [x.grad.abs().sum().item() for x in inputs]
        np.testing.assert_allclose(found, head.arrays["r0_input_grad_abs_sum"], rtol=1e-9)
        parameters = dict(extra.named_parameters())
        assert parameters.keys() == head.state_dict.keys()
        for name, expected in zip(head.state_dict, head.arrays["r0_param_grads"], strict=True):
            grad = parameters[name].grad
            found = [grad.abs().sum().item(), (grad * parameters[name]).sum().item()]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * max(1.0, expected[0]))

    def test_composes_with_the_adapter_and_an_fpn(self) -> None:
        adapter = ViTAdapter(_net(), deform_num_heads=2, norm="GN")
        extra = ExtraAttention(adapter, num_heads=4, drop_path_rate=0.1, use_act_checkpoint=True)
        model = FPN(extra, NAMES, 32)
        assert extra.output_shape() == adapter.output_shape()
        assert extra.size_divisibility == 32
        assert extra.padding_constraints == adapter.padding_constraints
        outputs = model(torch.randn(2, 3, 64, 96))
        assert outputs["p5"].shape == (2, 32, 2, 3)
        sum(output.square().mean() for output in outputs.values()).backward()
        assert all(parameter.grad is not None for parameter in extra.parameters())

    def test_without_ffn_it_is_pytorchs_attention(self) -> None:
        """A pre-norm transformer layer whose feed-forward branch adds nothing."""
        extra = ExtraAttention(_bottom_up(), num_heads=4, ffn_ratio=0).eval()
        assert not any(name.startswith(("ffn", "norm2")) for name in extra.state_dict())
        layer = nn.TransformerEncoderLayer(32, 4, 8, batch_first=True, norm_first=True, dropout=0.0)
        for name, tensor in extra.attn.qkv.state_dict().items():
            getattr(layer.self_attn, f"in_proj_{name}").data.copy_(tensor)
        layer.self_attn.out_proj.load_state_dict(extra.attn.proj.state_dict())
        nn.init.zeros_(layer.linear2.weight)
        nn.init.zeros_(layer.linear2.bias)
        feature = torch.randn(2, 32, 3, 5)
        expected = extra.final_norm(layer(feature.flatten(2).transpose(1, 2)))
        found = extra.attend(feature).flatten(2).transpose(1, 2)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    def test_keeps_the_weights_of_the_backbone(self) -> None:
        bottom_up = _bottom_up()
        before = {name: tensor.clone() for name, tensor in bottom_up.state_dict().items()}
        ExtraAttention(bottom_up)
        for name, tensor in bottom_up.state_dict().items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)

    @pytest.mark.parametrize("level", [True, "layers"])
    def test_levels_of_recomputation_change_no_gradient(self, level: bool | str) -> None:
        feature = torch.randn(2, 32, 3, 5, requires_grad=True)
        extra = ExtraAttention(_bottom_up(), num_heads=4)
        expected = torch.autograd.grad(extra.attend(feature).square().sum(), feature)
        extra.use_act_checkpoint = level
        found = torch.autograd.grad(extra.attend(feature).square().sum(), feature)
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"use_act_checkpoint": "all"}, "must be True, False or \"layers\", got 'all'"),
            (dict(in_feature="res6"), r"in_feature must be one of \['res2'.*got 'res6'"),
            (dict(num_heads=5), r"num_heads must divide res5's 32 channels, got 5"),
            (dict(num_heads=0), r"num_heads must divide"),
            (dict(drop_path_rate=1.0), r"drop_path_rate in \[0, 1\).*drop_path_rate=1.0"),
            (dict(ffn_ratio=-1.0), r"ffn_ratio >= 0.*ffn_ratio=-1.0"),
        ],
    )
    def test_bad_arguments(self, settings: dict[str, str | float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ExtraAttention(_bottom_up(), **settings)


class TestSimpleFeaturePyramid:
    def make(self, square_pad: int = 0, cls: type = SimpleFeaturePyramid) -> SimpleFeaturePyramid:
        return cls(
            net=_net(depth=2),
            in_feature="last_feat",
            out_channels=16,
            scale_factors=(4.0, 2.0, 1.0, 0.5),
            top_block=LastLevelMaxPool(),
            square_pad=square_pad,
        ).eval()

    @pytest.mark.parametrize("square_pad", [0, 128, 120])
    def test_pads_to_a_square_as_detectron2_does(self, square_pad: int) -> None:
        ours = self.make(square_pad)
        theirs = self.make(square_pad, Detectron2SimpleFeaturePyramid)
        ours.load_state_dict(theirs.state_dict())
        images = [torch.randn(3, 40, 70), torch.randn(3, 90, 60)]

        def features(pyramid: Detectron2SimpleFeaturePyramid, divisibility: int) -> dict:
            constraints = pyramid.padding_constraints
            return pyramid(ImageList.from_tensors(images, divisibility, 0.0, constraints).tensor)

        expected, found = features(theirs, 32), features(ours, ours.size_divisibility)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name])

    def test_images_are_padded_to_the_coarsest_stride(self) -> None:
        pyramid = self.make()
        images = ImageList.from_tensors(
            [torch.ones(3, 40, 70)],
            pyramid.size_divisibility,
            padding_constraints=pyramid.padding_constraints,
        )
        assert images.tensor.shape == (1, 3, 64, 96)

    def test_larger_images_are_refused(self) -> None:
        message = r"square_pad=64 .* 64 x 96: .* model.backbone.square_pad"
        with pytest.raises(ValueError, match=message):
            self.make(square_pad=64)(torch.zeros(1, 3, 64, 96))
