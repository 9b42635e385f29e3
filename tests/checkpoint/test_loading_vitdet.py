"""Loads into Detectron2's own ViT under the adapter: pre-trained, and of a trained ViTDet."""

import pytest
import timm
import torch
from detectron2.modeling import SimpleFeaturePyramid
from detectron2.modeling import ViT as Detectron2ViT
from torch import Tensor, nn

from vitadapter.checkpoint import check_plan, plan_load
from vitadapter.modeling.backbone import ViT, ViTAdapter

SIZE = dict(embed_dim=32, depth=4, num_heads=2, pretrain_img_size=64)
VITDET = SIZE | dict(img_size=128, window_size=3, window_block_indexes=[0, 2], use_rel_pos=True)
NET = "backbone.bottom_up.net."


class Model(nn.Module):
    """A backbone with a head."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(8, 5)


def with_adapter(net: nn.Module) -> Model:
    neck = nn.Module()
    neck.bottom_up = ViTAdapter(net, conv_dim=8, deform_num_heads=2)
    return Model(neck)


def trained_vitdet(**settings: object) -> dict[str, Tensor]:
    """The state dict of Detectron2's model, without a parameter at its initial value."""
    vit = Detectron2ViT(**VITDET | settings)
    model = Model(SimpleFeaturePyramid(vit, "last_feat", 16, scale_factors=(2.0, 1.0)))
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.state_dict()


def load(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The net's state after the load."""
    plan = plan_load(model, state, "w.pth")
    check_plan(plan, model)
    plan.apply(model)
    return model.get_submodule(NET[:-1]).state_dict()


def test_mae() -> None:
    model = with_adapter(Detectron2ViT(**SIZE))
    mae = timm.create_model("vit_base_patch16_224", img_size=96, embed_dim=32, depth=4, num_heads=2)
    state = mae.state_dict() | {
        "mask_token": torch.ones(1, 1, 32),
        "decoder_norm.bias": torch.ones(1),
    }
    plan = plan_load(model, state, "mae.pth")
    check_plan(plan, model)
    assert plan.report.family == "mae"
    assert plan.report.net_share == 1.0
    assert list(plan.report.resized) == [f"{NET}pos_embed"]
    plan.apply(model)
    for name, tensor in model.backbone.bottom_up.net.blocks.state_dict().items():
        assert torch.equal(tensor, state[f"blocks.{name}"]), name


@pytest.mark.parametrize("make", [Detectron2ViT, ViT])
def test_a_trained_vitdet_gives_its_net_and_its_heads(make: type[nn.Module]) -> None:
    state, model = trained_vitdet(), with_adapter(make(**VITDET))
    net = load(model, state)
    assert {f"backbone.net.{name}" for name in net} < state.keys()
    for name, tensor in net.items():
        assert torch.equal(tensor, state[f"backbone.net.{name}"]), name
    assert torch.equal(model.head.weight, state["head.weight"])
    report = plan_load(model, state, "w.pth").report
    assert all(".simfp_" in name for name in report.unexpected)


def test_relative_positions_of_another_image_size_are_those_that_detectron2_computes_with() -> None:
    """It resizes them for each image, linearly; those of windows fit any image."""
    state = trained_vitdet()
    larger = with_adapter(Detectron2ViT(**VITDET | dict(img_size=192)))
    plan = plan_load(larger, state, "w.pth")
    check_plan(plan, larger)
    tables = [name for name in plan.report.resized if ".rel_pos_" in name]
    assert tables == [f"{NET}blocks.{i}.attn.rel_pos_{axis}" for i in (1, 3) for axis in "hw"]
    assert str(plan.report.resized[tables[0]]) == "(15, 16) to (23, 16), linear"
    plan.apply(larger)
    own = Detectron2ViT(**VITDET).eval()
    start = "backbone.net."
    own.load_state_dict({n[len(start) :]: t for n, t in state.items() if n.startswith(start)})
    images = torch.randn(1, 3, 192, 192)
    found = larger.eval().backbone.bottom_up.net(images)["last_feat"]
    torch.testing.assert_close(found, own(images)["last_feat"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(embed_dim=48), r"differs in size from the net: .*pos_embed is \(1, 17, 48\) in the"),
        (dict(num_heads=4), r"rel_pos_h is \(5, 8\) in the file, \(5, 16\) here \(relative pos"),
        (dict(depth=6), r"tensors that the net does not have: .*blocks\.4\."),
        (dict(residual_block_indexes=[1]), r"does not have: .*blocks\.1\.residual\.conv1"),
        (dict(depth=2, window_block_indexes=[0]), r"has 66\.3% of the net's parameters"),
    ],
)
def test_a_vitdet_of_another_net(settings: dict, message: str) -> None:
    model = with_adapter(Detectron2ViT(**VITDET))
    with pytest.raises(ValueError, match=message):
        load(model, trained_vitdet(**settings))
