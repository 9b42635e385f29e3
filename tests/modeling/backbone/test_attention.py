"""Global, CSwin and Pale attention against attention with explicit masks, and PyTorch's own."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitadapter.modeling.backbone import (
    CSwinAttention,
    GlobalAttention,
    PaleAttention,
    ViT,
    ViTAdapter,
    ViTSpatialPrior,
)
from vitadapter.modeling.backbone.interaction import TokenGrids

DIM, HEADS = 16, 4
CLASSES = [GlobalAttention, CSwinAttention, PaleAttention]
SIDES = ["injector", "extractor"]
# ViT tokens of images of 32 x 32, 32 x 96, 160 x 96 and 224 x 64 pixels.
VIT_SIZES = [(2, 2), (2, 6), (10, 6), (14, 4)]

Shapes = Sequence[tuple[int, int]]


def make(attention: type[nn.Module], side: str, **arguments: float) -> nn.Module:
    torch.manual_seed(0)
    module = attention(
        embed_dim=DIM,
        num_heads=HEADS,
        num_levels=3 if side == "injector" else 1,
        num_points=4,
        **arguments,
    )
    for parameter in module.parameters():  # the initial scores would be almost equal
        nn.init.normal_(parameter, std=0.5)
    return module


def make_inputs(
    side: str, vit: tuple[int, int], batch: int = 2
) -> tuple[Tensor, Tensor, Tensor, Shapes]:
    torch.manual_seed(1)
    grids = TokenGrids.of(vit, torch.device("cpu"))
    counts = grids.vit_points.shape[1], grids.pyramid_points.shape[1]
    x, c = (torch.randn(batch, n, DIM, requires_grad=True) for n in counts)
    if side == "injector":
        return x, grids.vit_points, c, grids.pyramid
    return c, grids.pyramid_points, x, (grids.vit,)


def units_in_windows(module: nn.Module, shapes: Shapes, axis: int, coarsest: int) -> Tensor:
    """How many units each token of maps has in each window (N, windows).

    `coarsest` is the number of rows (or columns) at stride 32.
    """
    pale = isinstance(module, PaleAttention)
    units = torch.arange(coarsest * (2 if pale else 1))
    windows = -(-len(units) // module.window_units)
    window = units % windows if pale else units // module.window_units
    parts = []
    for shape in shapes:
        row = torch.cartesian_prod(*map(torch.arange, shape))[:, axis, None]
        begins_before = row * len(units) < (units + 1) * shape[axis]
        ends_after = (row + 1) * len(units) > units * shape[axis]
        parts.append((begins_before & ends_after).long() @ F.one_hot(window, windows))
    return torch.cat(parts).double()


def masked_attention(
    module: nn.Module, query: Tensor, value: Tensor, query_shapes: Shapes, shapes: Shapes
) -> Tensor:
    """All scores of a head, and a mask made from the tokens' places for each window."""
    q, k = module.query_proj(query), module.key_proj(value)
    v = module.value_proj(value)
    outputs = []
    for head, channels in enumerate(torch.arange(q.shape[-1]).chunk(HEADS)):
        axis = 0 if head < HEADS // 2 else 1
        coarsest = min(shape[axis] for shape in (*query_shapes, *shapes))
        of_queries = units_in_windows(module, query_shapes, axis, coarsest)
        of_keys = units_in_windows(module, shapes, axis, coarsest)
        exponentials = (q[..., channels] @ k[..., channels].mT / len(channels) ** 0.5).exp()
        output = 0
        for is_query, is_key in zip(of_queries.T, of_keys.T, strict=True):
            weights = exponentials * is_key
            attended = weights @ v[..., channels] / weights.sum(-1, keepdim=True)
            output = output + attended * (is_query / of_queries.sum(1))[:, None]
        outputs.append(output)
    output = torch.cat(outputs, -1)
    if isinstance(module, CSwinAttention):
        output = output + lepe(module, v, query_shapes, shapes)
    return module.output_proj(output)


def lepe(module: nn.Module, v: Tensor, query_shapes: Shapes, shapes: Shapes) -> Tensor:
    """A weighted sum of the values at the nine places around each query of stride 16."""
    levels = v.split([h * w for h, w in shapes], 1)
    parts = []
    for h, w in query_shapes:
        part = v.new_zeros(v.shape[0], h, w, v.shape[-1])
        if (h, w) in shapes:
            image = levels[shapes.index((h, w))].unflatten(1, (h, w))
            around = F.pad(image, (0, 0, 1, 1, 1, 1))
            part = part + module.lepe.bias
            for dy in range(3):
                for dx in range(3):
                    weight = module.lepe.weight[:, 0, dy, dx]
                    part = part + weight * around[:, dy : dy + h, dx : dx + w]
        parts.append(part.flatten(1, 2))
    return torch.cat(parts, 1)


def output_and_gradients(output: Tensor, module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(output.shape, generator=generator).to(output)
    # The gradient of the keys' bias is zero but for rounding.
    parameters = [p for name, p in module.named_parameters() if name != "key_proj.bias"]
    return [output, *torch.autograd.grad((output * weights).sum(), [*inputs, *parameters])]


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("side", SIDES)
def test_global_attention_is_pytorchs_multi_head_attention(side: str, ratio: float) -> None:
    module = make(GlobalAttention, side, ratio=ratio)
    query, points, value, shapes = make_inputs(side, (4, 6))
    projected = (module.query_proj(query), module.key_proj(value), module.value_proj(value))
    width = int(DIM * ratio)
    theirs, _ = F.multi_head_attention_forward(
        *(x.transpose(0, 1) for x in projected),
        embed_dim_to_check=width,
        num_heads=HEADS,
        in_proj_weight=torch.eye(width).repeat(3, 1),
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=module.output_proj.weight,
        out_proj_bias=module.output_proj.bias,
    )
    torch.testing.assert_close(module(query, points, value, shapes), theirs.transpose(0, 1))


@pytest.mark.parametrize("vit", VIT_SIZES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("attention", "arguments"),
    [
        (CSwinAttention, {}),
        (CSwinAttention, {"stripe_width": 2, "ratio": 0.5}),
        (CSwinAttention, {"stripe_width": 7}),
        (PaleAttention, {}),
        (PaleAttention, {"pale_size": 3}),
        (PaleAttention, {"pale_size": 4, "ratio": 2.0}),
    ],
)
def test_windows_equal_masks(
    attention: type[nn.Module], arguments: dict[str, float], side: str, vit: tuple[int, int]
) -> None:
    """In outputs and gradients, also if windows do not divide the maps."""
    module = make(attention, side, **arguments).double()
    query, points, value, shapes = make_inputs(side, vit)
    other = TokenGrids.of(vit, torch.device("cpu")).pyramid if side == "extractor" else (vit,)
    query, value = query.detach().double(), value.detach().double()
    query.requires_grad_()
    value.requires_grad_()
    found = module(query, points, value, shapes)
    expected = masked_attention(module, query, value, other, shapes)
    torch.testing.assert_close(
        output_and_gradients(found, module, query, value),
        output_and_gradients(expected, module, query, value),
    )


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("attention", CLASSES)
def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients(
    attention: type[nn.Module], side: str
) -> None:
    module = make(attention, side)
    query, points, value, shapes = make_inputs(side, (4, 6))
    expected = output_and_gradients(module(query, points, value, shapes), module, query, value)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(query, points, value, shapes)
    assert output.dtype == torch.bfloat16
    found = output_and_gradients(output, module, query, value)
    for each, other in zip(found[1:], expected[1:], strict=True):
        assert each.dtype == torch.float32
        assert (each - other).norm() < 0.05 * other.norm()
    assert (found[0] - expected[0]).norm() < 0.02 * expected[0].norm()


@pytest.mark.parametrize("attention", CLASSES)
def test_images_of_a_batch_do_not_meet(attention: type[nn.Module]) -> None:
    module = make(attention, "injector")
    query, points, value, shapes = make_inputs("injector", (4, 6), batch=3)
    found = module(query, points, value, shapes)
    each = [module(query[i : i + 1], points, value[i : i + 1], shapes) for i in range(3)]
    torch.testing.assert_close(found, torch.cat(each))


@pytest.mark.parametrize(
    ("attention", "side", "arguments"),
    [
        (CSwinAttention, "extractor", {}),
        (PaleAttention, "injector", {"pale_size": 3}),  # does not divide the maps
    ],
)
def test_compiled_and_exported_equal_eager(
    attention: type[nn.Module], side: str, arguments: dict[str, float]
) -> None:
    """One program for batches of any size."""
    module = make(attention, side, **arguments)
    *inputs, shapes = make_inputs(side, (4, 10))
    batch = {0: torch.export.Dim("batch", min=1)}
    sizes = (batch, None, batch, ((None, None),) * len(shapes))
    program = torch.export.export(module, (*inputs, shapes), dynamic_shapes=sizes, strict=False)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for size in (2, 3):
        query, points, value, shapes = make_inputs(side, (4, 10), size)
        expected = module(query, points, value, shapes)
        torch.testing.assert_close(program.module()(query, points, value, shapes), expected)
        torch._dynamo.mark_dynamic(query, 0)
        torch._dynamo.mark_dynamic(value, 0)
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = compiled(query, points, value, shapes)
        torch.testing.assert_close(
            output_and_gradients(found, module, query, value),
            output_and_gradients(expected, module, query, value),
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize("attention", CLASSES)
def test_backbones_take_it(attention: type[nn.Module]) -> None:
    """Smallest images, in training, with checkpointing: every parameter has the same gradient."""
    images = torch.randn(2, 3, 32, 33)

    def net() -> ViT:
        return ViT(embed_dim=32, depth=4, num_heads=2)

    settings = dict(conv_dim=32, deform_num_heads=2, injector_gamma_init=0.5, attention=attention)
    gradients = []
    for make_model in (
        lambda: ViTAdapter(net(), norm="GN", use_act_checkpoint=False, **settings),
        lambda: ViTAdapter(net(), norm="GN", use_act_checkpoint=True, **settings),
        lambda: ViTSpatialPrior(net(), prior_norm="GN", **settings),
    ):
        torch.manual_seed(0)
        model = make_model()
        assert any(isinstance(module, attention) for module in model.modules())
        sum(out.square().mean() for out in model(images).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(grad is not None for model in gradients for grad in model)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("attention", CLASSES)
def test_bad_inputs(attention: type[nn.Module]) -> None:
    module = make(attention, "injector")
    query, points, value, shapes = make_inputs("injector", (4, 6))
    for arguments, message in (
        ((query[..., 1:], points, value, shapes), r"query must have shape .*embed_dim=16"),
        ((query, points, value[0], shapes), r"value must have shape .*got \(126, 16\)"),
        ((query, points, value[:1], shapes), r"same batch size, got \(2, 24, 16\) and \(1, 126"),
        ((query, points, value, shapes[:2]), r"num_levels=3 entries with the 126 tokens"),
        ((query, points, value[:, 1:], shapes), r"with the 125 tokens of value"),
    ):
        with pytest.raises(ValueError, match=message):
            module(*arguments)


@pytest.mark.parametrize("attention", [CSwinAttention, PaleAttention])
@pytest.mark.parametrize(
    ("queries", "shapes"),
    [
        (23, ((8, 12), (4, 6), (2, 3))),
        (24, ((8, 12), (4, 6), (2, 4))),
        (15, ((6, 10), (3, 5), (1, 2))),  # odd
        (24, ((8, 12), (4, 6))),
        (125, ((4, 6),)),
        (24, ((4, 6),)),
    ],
)
def test_stripes_and_pales_need_the_maps_of_the_adapter(
    attention: type[nn.Module], queries: int, shapes: Shapes
) -> None:
    module = attention(DIM, HEADS, len(shapes), 4)
    value = torch.zeros(1, sum(h * w for h, w in shapes), DIM)
    with pytest.raises(ValueError, match=rf"need queries of stride 16 .* got {queries} queries"):
        module(torch.zeros(1, queries, DIM), torch.zeros(1, queries, 1, 2), value, shapes)


@pytest.mark.parametrize(
    ("make_bad", "message"),
    [
        (partial(GlobalAttention, 16, 3, 1, 4), "num_heads must divide"),
        (partial(GlobalAttention, 16, 4, 0, 4), "num_levels=0"),
        (partial(PaleAttention, 16, 4, 1, 4, ratio=0.01), "ratio=0.01"),
        (partial(CSwinAttention, 15, 3, 1, 4), "CSwinAttention needs an even number of heads"),
        (partial(CSwinAttention, 16, 4, 1, 4, stripe_width=0), "at least one, .* 0 rows"),
        (partial(CSwinAttention, 16, 4, 1, 4, stripe_width=1.5), "whole number .* 1.5 rows"),
        (partial(PaleAttention, 16, 4, 1, 4, pale_size="2"), "whole number .* '2' rows"),
        (partial(PaleAttention, 16, 4, 1, 4, pale_size=-1), "PaleAttention .* -1 rows"),
    ],
)
def test_bad_arguments(make_bad: partial[nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_bad()
