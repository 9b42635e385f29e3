"""Variants 1 and 2 of the paper's table 6."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitadapter.modeling.backbone import ViT, ViTAdapter, ViTBaseline, ViTSpatialPrior
from vitadapter.ops import MSDeformAttn, MSDeformAttnReference

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def make(attention: type[nn.Module] | None, **arguments: object) -> ViTSpatialPrior:
    torch.manual_seed(0)
    net = ViT(embed_dim=32, depth=4, num_heads=2)
    model = ViTSpatialPrior(
        net, attention=attention, conv_dim=8, deform_num_heads=4, prior_norm="BN", **arguments
    )
    return model.eval()


def baseline_of(model: ViTSpatialPrior) -> ViTBaseline:
    """The baseline with the same weights."""
    blocks = list(model.block_indexes)
    baseline = ViTBaseline(ViT(embed_dim=32, depth=4, num_heads=2), block_indexes=blocks).eval()
    weights = {name: w for name, w in model.state_dict().items() if name in baseline.state_dict()}
    baseline.load_state_dict(weights)
    return baseline


@pytest.mark.parametrize("attention", [None, MSDeformAttn])
def test_without_priors_it_is_the_baseline(attention: type[nn.Module] | None) -> None:
    """The projections of the spatial prior module are zero, and so are the injectors' gates."""
    model = make(attention)
    for projection in (model.spm.fc1, model.spm.fc2, model.spm.fc3, model.spm.fc4):
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
    found, expected = model(IMAGES), baseline_of(model)(IMAGES)
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_variant_1_adds_resized_priors_before_each_stage() -> None:
    model = make(None, num_interactions=2)
    c1, *priors = model.spm(IMAGES)
    added = sum(F.interpolate(p, (4, 6), mode="bilinear", align_corners=False) for p in priors)
    x, prefix = model.net.embed(IMAGES)
    blocks = []
    for i in range(4):
        if i in (0, 2):
            x = x + added.permute(0, 2, 3, 1)
        x, prefix = model.net.forward_blocks(x, prefix, i, i + 1)
        blocks.append(x)
    expected = baseline_of(model)._outputs(dict(enumerate(blocks)))
    expected["res2"] = expected["res2"] + c1
    found = model(IMAGES)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_variant_2_injects_by_the_attention_that_is_given() -> None:
    model = make(MSDeformAttn, injector_gamma_init=1.0)
    reference = make(MSDeformAttnReference, injector_gamma_init=1.0)
    assert len(model.injectors) == 4
    reference.load_state_dict(model.state_dict())
    found, expected = model(IMAGES), reference(IMAGES)
    plain = baseline_of(model)(IMAGES)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
        assert not torch.allclose(found[name], plain[name], atol=1e-3)


@pytest.mark.parametrize("attention", [None, MSDeformAttn])
@pytest.mark.parametrize("blocks", [None, [1]])
def test_every_parameter_is_trained(
    attention: type[nn.Module] | None, blocks: list[int] | None
) -> None:
    """Parameters without a gradient stop distributed training; blocks that do not run have none."""
    model = make(attention, block_indexes=blocks, injector_gamma_init=1.0).train()
    sum((out * torch.randn_like(out)).sum() for out in model(IMAGES).values()).backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    last = model.block_indexes[-1]
    assert {name.split(".")[2] for name in unused} == {str(i) for i in range(last + 1, 4)}
    assert all(name.startswith("net.blocks.") for name in unused)


def test_any_size_is_padded() -> None:
    model = make(MSDeformAttn, injector_gamma_init=1.0)
    images = IMAGES[:, :, :40, :70]
    padded = F.pad(images, (0, 26, 0, 24))
    found, expected = model(images), model(padded)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_the_interactions_must_divide_the_net() -> None:
    for wrong in (3, 0, 2.0, "2", None):
        message = f"num_interactions must be an integer that divides .* depth 4 .*got {wrong!r}"
        with pytest.raises(ValueError, match=message):
            make(None, num_interactions=wrong)


def test_the_attention_is_a_class() -> None:
    with pytest.raises(TypeError, match=r"attention must be a class .*got 'PaleAttention'"):
        make("PaleAttention")
    with pytest.raises(TypeError, match=r"attention must be a class .*got None"):
        ViTAdapter(ViT(embed_dim=32, depth=4, num_heads=2), attention=None)
