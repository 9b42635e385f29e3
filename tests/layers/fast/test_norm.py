"""A norm that adds and converts, against PyTorch's layers in float64, and its kernels."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cuda_emulation_cases import build, load
from torch import Tensor, nn
from torch._ops import _OpNamespace

from vitadapter.layers.fast import add_and_norm, as_on_gpu, norm, plain_layers, run_linear
from vitadapter.layers.fast.recompute import recipe_of, run_with_checkpoint

KERNELS = Path(__file__).parents[3] / "kernels" / "add_and_norm"
HALF = torch.bfloat16
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def layer(channels: int = 6, **settings: object) -> nn.LayerNorm:
    torch.manual_seed(0)
    made = nn.LayerNorm(channels, **settings)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def results(made: nn.Module, dtype: torch.dtype, branch_dtype: torch.dtype | None) -> list[Tensor]:
    """Outputs of `add_and_norm`, which both are used, and the gradients."""
    torch.manual_seed(1)
    x = torch.randn(2, 5, 6).to(dtype).requires_grad_()
    branch = torch.randn(2, 5, 6).to(HALF)
    grads = torch.randn(2, 5, 6), torch.randn(2, 5, 6).to(HALF)
    leaves = [x, *made.parameters()]
    if branch_dtype is not None:
        branch = branch.to(branch_dtype).requires_grad_()
        leaves.append(branch)
    total, normed = add_and_norm(made, x, None if branch_dtype is None else branch)
    outputs = (total, normed)
    found = torch.autograd.grad(
        outputs, leaves, [g.to(out.dtype) for g, out in zip(grads, outputs, strict=True)]
    )
    return [total, normed, *found]


@pytest.mark.parametrize("branch_dtype", [None, HALF, torch.float32])
def test_equals_pytorch(branch_dtype: torch.dtype | None) -> None:
    made = layer()
    with as_on_gpu(), torch.autocast("cpu", HALF):
        found = results(made, torch.float32, branch_dtype)
    with plain_layers():
        exact = results(
            made.double(), torch.float64, None if branch_dtype is None else torch.float64
        )
    assert (found[0].dtype, found[1].dtype) == (torch.float32, HALF)
    for ours, theirs in zip(found, exact, strict=True):
        tolerance = 1e-2 if ours.dtype == HALF else 1e-5
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
    if branch_dtype is not None:
        assert found[-1].dtype == branch_dtype


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_may_be_unused(used: int) -> None:
    made, x = layer(), torch.randn(4, 6, requires_grad=True)
    branch = torch.randn(4, 6).to(HALF).requires_grad_()
    grads = []
    for run in (add_and_norm, lambda m, x, b: (x + b, m(x + b))):
        with as_on_gpu(), torch.autocast("cpu", HALF):
            output = run(made, x, branch)[used]
        grads.append(torch.autograd.grad(output.float().square().sum(), (x, branch)))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("frozen", ["norm", "stream"])
def test_frozen_parts_have_no_gradients(frozen: str) -> None:
    made, x = layer(), torch.randn(4, 6, requires_grad=frozen == "norm")
    made.requires_grad_(frozen == "stream")
    with as_on_gpu(), torch.autocast("cpu", HALF):
        total, normed = add_and_norm(made, x)
    (total.sum() + normed.float().square().sum()).backward()
    assert [t.grad is None for t in (x, *made.parameters())] == [
        not t.requires_grad for t in (x, *made.parameters())
    ]


def has_hook() -> nn.Module:
    made = layer()
    made.register_forward_hook(lambda *_: None)
    return made


@pytest.mark.parametrize(
    ("made", "dtype", "branch"),
    [
        (has_hook(), torch.float32, None),
        (layer().bfloat16(), HALF, None),
        (layer(bias=False), torch.float32, None),
        (nn.RMSNorm(6), torch.float32, None),
        (nn.LayerNorm((4, 6)), torch.float32, None),
        (layer(), torch.float32, torch.zeros(1, 6)),
    ],
    ids=["hook", "half", "no bias", "RMSNorm", "two axes", "broadcast"],
)
def test_others_run_as_they_are(made: nn.Module, dtype: torch.dtype, branch: Tensor | None) -> None:
    x = torch.randn(4, 6).to(dtype)
    with as_on_gpu(), torch.autocast("cpu", HALF):
        total, normed = add_and_norm(made, x, branch)
        expected = made(x if branch is None else x + branch)
    assert branch is not None or total is x
    torch.testing.assert_close(normed, expected)


@pytest.mark.parametrize("half", [True, False])
def test_only_autocast_has_conversions_to_save(half: bool) -> None:
    made, x = layer(), torch.randn(4, 6)
    with as_on_gpu(), torch.autocast("cpu", HALF, enabled=half):
        assert (add_and_norm(made, x)[1].dtype == HALF) == half
    with torch.autocast("cpu", HALF):  # elsewhere, this is that of PyTorch
        assert add_and_norm(made, x)[1].dtype == made(x).dtype


def test_layers_run_again_on_a_gpu_only_if_they_are_to() -> None:
    made, linear = layer(), nn.Linear(6, 4)
    x = torch.randn(8, 6, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        normed = add_and_norm(made, x)[1]
        has_recipe.append(recipe_of(normed) is not None)
        return run_linear(linear, normed)

    grads, has_recipe = [], []
    for level in (False, "layers", True):
        with as_on_gpu(), torch.autocast("cpu", HALF):
            output = run_with_checkpoint(level, run, x)
            grads.append(torch.autograd.grad(output.float().square().sum(), (x, linear.weight)))
    assert has_recipe == [False, True, False, False]  # the last runs twice
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(grads[2], grads[0])


def test_operators_tell_pytorch_the_truth() -> None:
    made = layer()
    x, branch = torch.randn(3, 6), torch.randn(3, 6).to(HALF)
    weight, bias = made.weight.detach(), made.bias.detach()
    checks = ("test_schema", "test_faketensor")
    forward = torch.ops.vitadapter.add_and_norm.default
    backward = torch.ops.vitadapter.add_and_norm_backward.default
    torch.library.opcheck(forward, (x, branch, weight, bias, 1e-6, HALF), test_utils=checks)
    total, normed, mean, rstd = forward(x, branch, weight, bias, 1e-6, HALF)
    saved = (total, mean, rstd, weight)
    for grad_total, dtype in ((None, torch.float32), (x, HALF)):
        torch.library.opcheck(backward, (normed, grad_total, *saved, dtype), test_utils=checks)


@pytest.fixture(scope="module")
def emulated() -> Iterator[_OpNamespace]:
    """The CUDA operators, on the emulated device."""
    library = torch.library.Library("vitadapter_emulated", "FRAGMENT")
    for schema in norm._SCHEMAS:
        library.define(schema)
    yield load(build(KERNELS))
    library._destroy()


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> tuple[_OpNamespace, torch.device]:
    """The CUDA operators, and where the tensors that they take live."""
    if request.param == "cuda":
        assert norm._has_kernels(torch.device("cuda")), "only the plain operator is there"
        return torch.ops.vitadapter, torch.device("cuda")
    return request.getfixturevalue("emulated"), torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("branch_dtype", [None, *DTYPES])
@pytest.mark.parametrize(("rows", "channels"), [(1, 6), (600, 40), (5, 300), (2, 4096)])
def test_cuda_kernels(
    kernels: tuple[_OpNamespace, torch.device],
    rows: int,
    channels: int,
    branch_dtype: torch.dtype | None,
    dtype: torch.dtype,
) -> None:
    operators, device = kernels
    torch.manual_seed(0)
    x, grad_total = torch.randn(2, rows, channels).to(device)
    branch = None if branch_dtype is None else torch.randn(rows, channels).to(device, branch_dtype)
    weight, bias = torch.randn(2, channels).to(device)
    arguments = (x, branch, weight, bias, 1e-6, dtype)
    expected = norm._forward(*arguments)
    torch.testing.assert_close(operators.add_and_norm(*arguments), expected, rtol=1e-2, atol=1e-5)
    sums, normed, mean, rstd = expected
    total = x if branch is None else sums
    for grad in (None, grad_total):
        saved = (total, mean, rstd, weight, branch_dtype or torch.float32)
        found = operators.add_and_norm_backward(normed, grad, *saved)
        expected = norm._backward(normed, grad, *saved)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-3)


def test_cuda_kernels_of_nothing(emulated: _OpNamespace) -> None:
    x, weight = torch.zeros(0, 6), torch.ones(6)
    found = emulated.add_and_norm(x, x.to(HALF), weight, weight, 1e-6, HALF)
    assert [tuple(t.shape) for t in found] == [(0, 6), (0, 6), (0,), (0,)]
    saved = (found[0], found[2], found[3], weight)
    grads = emulated.add_and_norm_backward(found[1], None, *saved, HALF)
    torch.testing.assert_close(grads[2:], (torch.zeros(6), torch.zeros(6)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 6).double()}, "x must be float32 .* got Double"),
        ({"weight": torch.ones(5)}, r"one weight for each channel of x, got \[5\] for \[2, 6\]"),
        ({"bias": torch.ones(5)}, "weight and bias must have one shape"),
        ({"branch": torch.zeros(1, 6)}, r"shape and device of x, got \[1, 6\] for \[2, 6\]"),
        ({"dtype": torch.float32}, "must be in float16 or bfloat16, got Float"),
        (
            {"x": torch.zeros(2, 4097), "weight": torch.ones(4097), "branch": None},
            "x must have 1 to 4096 channels, got 4097",
        ),
    ],
)
def test_cuda_operators_refuse(
    emulated: _OpNamespace, change: dict[str, object], message: str
) -> None:
    given = {"x": torch.zeros(2, 6), "branch": torch.zeros(2, 6), "weight": torch.ones(6)}
    given |= {"bias": torch.ones(6), "eps": 1e-6, "dtype": HALF, **change}
    with pytest.raises(RuntimeError, match=message):
        emulated.add_and_norm(**given)


def test_too_many_channels_run_as_they_are() -> None:
    x = torch.randn(2, 4097)
    with as_on_gpu(), torch.autocast("cpu", HALF):
        assert add_and_norm(nn.LayerNorm(4097), x)[0] is x


def test_a_rows_statistics_are_those_of_pytorch() -> None:
    x, made = torch.randn(2, 3, 6), layer()
    _, _, mean, rstd = norm._forward(x, None, made.weight, made.bias, made.eps, HALF)
    torch.testing.assert_close(mean, x.mean(-1).flatten())
    torch.testing.assert_close(rstd, (x.var(-1, correction=0) + made.eps).rsqrt().flatten())
