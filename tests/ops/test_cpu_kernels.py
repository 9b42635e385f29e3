"""The CPU kernels of every instruction set that this processor has, against float64 references."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ms_deform_attn_cases import FUSED_BACKWARD_OP, assert_same, gradients, make_fused_inputs
from torch import Tensor

from vitadapter.ops import (
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)

CAPABILITIES = ["default", "avx2", "avx512"]
SHAPES = [(5, 7), (3, 2), (1, 9)]


@pytest.fixture(params=CAPABILITIES)
def capability(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn."""
    before = torch.ops.vitadapter._cpu_capability()
    try:
        torch.ops.vitadapter._cpu_capability(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    torch.ops.vitadapter._cpu_capability(before)


def _unfused(
    shapes: list[tuple[int, int]], inputs: tuple[Tensor, ...], coordinate: torch.dtype
) -> tuple[Tensor, ...]:
    """The same problem as value, locations and weights."""
    value, reference, offsets, logits = inputs
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)
    locations = reference.double()[:, :, None, :, None] + offsets.double() / sizes[:, None]
    weights = logits.double().flatten(3).softmax(-1).reshape(logits.shape)
    return value, locations.to(coordinate), weights.to(coordinate)


def _assert_equals_float64(
    got: list[Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor, fused: bool
) -> None:
    reference = ms_deform_attn_fused_reference if fused else ms_deform_attn_reference
    double = tuple(tensor.double() for tensor in inputs)
    expected = gradients(reference, double, grad_output.double(), SHAPES)
    for a, b in zip(got, expected, strict=True):
        # Coordinates and sums are float32 at least; the results are rounded to their own dtype.
        tolerance = 1e-11 if grad_output.dtype == torch.float64 else 4e-5
        torch.testing.assert_close(
            a.double(), b, rtol=max(tolerance, torch.finfo(a.dtype).eps), atol=tolerance
        )


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("head_dim", [1, 2, 7, 16, 32, 33, 64, 96, 130])
def test_equals_float64_reference(
    capability: str, fused: bool, dtype: torch.dtype, head_dim: int
) -> None:
    # More queries than a block has, and not a multiple of any vector.
    inputs = make_fused_inputs(
        queries=67, heads=2, head_dim=head_dim, points=3, shapes=SHAPES, dtype=dtype
    )
    function = ms_deform_attn_fused if fused else ms_deform_attn
    if not fused:
        inputs = _unfused(SHAPES, inputs, inputs[1].dtype)
    grad_output = torch.randn(2, 67, 2 * head_dim, generator=torch.Generator().manual_seed(1))
    grad_output = grad_output.to(dtype)
    _assert_equals_float64(
        gradients(function, inputs, grad_output, SHAPES), inputs, grad_output, fused
    )


@pytest.mark.parametrize("points", [1, 2, 4, 5, 16])
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("queries", [1, 64, 65])
def test_numbers_of_taps(capability: str, points: int, levels: int, queries: int) -> None:
    shapes = SHAPES[:levels]
    inputs = make_fused_inputs(
        queries=queries, head_dim=16, points=points, shapes=shapes, dtype=torch.float32
    )
    grad_output = torch.randn(2, queries, 48, generator=torch.Generator().manual_seed(1))
    got = gradients(ms_deform_attn_fused, inputs, grad_output, shapes)
    double = tuple(tensor.double() for tensor in inputs)
    expected = gradients(ms_deform_attn_fused_reference, double, grad_output.double(), shapes)
    assert_same(got, expected, 4e-5)
    plain = _unfused(shapes, inputs, torch.float32)
    got = gradients(ms_deform_attn, plain, grad_output, shapes)
    expected = gradients(
        ms_deform_attn_reference, tuple(t.double() for t in plain), grad_output.double(), shapes
    )
    assert_same(got, expected, 4e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_taps_outside_read_nothing(capability: str, dtype: torch.dtype, far: float) -> None:
    """Not even rows that are not finite, wherever a kernel might point in their place."""
    value, reference, offsets, logits = make_fused_inputs(
        queries=20, head_dim=19, shapes=SHAPES, dtype=dtype
    )
    value.fill_(math.inf)
    offsets[..., 1] = far
    grad_output = torch.ones(2, 20, 57, dtype=dtype)
    results = gradients(
        ms_deform_attn_fused, (value, reference, offsets, logits), grad_output, SHAPES
    )
    assert all(tensor.eq(0).all() for tensor in results)


def test_softmax_is_accurate(capability: str) -> None:
    """Through values that tell the weights apart, over the whole range of the exponential."""
    shapes = [(1, 64)]
    value = torch.eye(64).reshape(1, 64, 1, 64)
    reference = ((torch.arange(64) + 0.5) / 64)[None].expand(100, 64)
    offsets = torch.zeros(1, 100, 1, 1, 64, 2)
    offsets[..., 0] = (reference * 64 - 32).reshape(1, 100, 1, 1, 64)
    logits = torch.randn(1, 100, 1, 1, 64, generator=torch.Generator().manual_seed(0))
    logits *= torch.linspace(0.1, 60, 100)[:, None, None, None]
    points = torch.full((1, 100, 1, 2), 0.5)
    got = ms_deform_attn_fused(value, shapes, points, offsets, logits).reshape(100, 64)
    logits = logits.reshape(100, 64)
    # Rounded to float32 after subtraction of the largest, as in every float32 softmax.
    expected = (logits - logits.amax(-1, keepdim=True)).double().softmax(-1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("head_dim", [5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_for_any_number_of_threads(
    capability: str, head_dim: int, dtype: torch.dtype
) -> None:
    inputs = make_fused_inputs(queries=200, head_dim=head_dim, shapes=SHAPES, dtype=dtype)
    grad_output = torch.randn(2, 200, 3 * head_dim).to(dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 7):  # with seven, more threads than images times heads
            torch.set_num_threads(count)
            results.append(gradients(ms_deform_attn_fused, inputs, grad_output, SHAPES))
    finally:
        torch.set_num_threads(threads)
    assert_same(results[1], results[0], 0)
    assert_same(results[2], results[0], 0)


def test_instruction_sets_agree() -> None:
    before = torch.ops.vitadapter._cpu_capability()
    value, *others = make_fused_inputs(queries=70, head_dim=33, shapes=SHAPES, dtype=torch.float32)
    flat = [size for shape in SHAPES for size in shape]
    results = {}
    for name in CAPABILITIES:
        try:
            torch.ops.vitadapter._cpu_capability(name)
        except ValueError:
            continue
        grad_output = torch.ones(2, 70, 99)
        results[name] = FUSED_BACKWARD_OP(grad_output, value, flat, *others)
        assert torch.ops.vitadapter._cpu_capability() == name
    torch.ops.vitadapter._cpu_capability(before)
    for result in results.values():
        assert_same(list(result), list(results["default"]), 4e-5)


def test_capability_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"this processor has default.*got sse9"):
        torch.ops.vitadapter._cpu_capability("sse9")


def test_environment_caps_the_capability() -> None:
    program = "import torch, vitadapter.ops; print(torch.ops.vitadapter._cpu_capability(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "default"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_nothing_compiled_for_an_instruction_set_is_shared(
    name: str, repository: Path, tmp_path: Path
) -> None:
    """The linker keeps one copy of each weak symbol: it might be one this processor cannot run."""
    source = repository / "kernels" / "ms_deform_attn" / f"cpu_kernels_{name}.cpp"
    target = tmp_path / "kernels.o"
    subprocess.run(["g++", "-std=c++17", "-O1", "-fPIC", "-c", source, "-o", target], check=True)
    symbols = subprocess.run(
        ["nm", "-C", "--defined-only", target], capture_output=True, text=True, check=True
    )
    shared = [line for line in symbols.stdout.splitlines() if line.split()[1].isupper()]
    assert len(shared) <= 1, shared
    assert all(f"kCpuKernelsAvx{name[3:]}" in line for line in shared)
