"""The CUDA operators on a real GPU: the cases of the emulated device, and what only a GPU has."""

import math

import pytest
import torch
from cuda_emulation_cases import PYRAMID, Case, deterministic, gradients, reference_gradients
from torch import Tensor

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def on_device(case: Case, device: str = "cuda") -> list[Tensor]:
    """Output and gradients by the operators on a GPU, on the CPU."""
    return gradients(torch.ops.vitadapter, case, device)


def check(case: Case) -> None:
    for got, expected in zip(on_device(case), reference_gradients(case), strict=True):
        rounding = torch.finfo(got.dtype).eps
        tolerance = 1e-12 if got.dtype == torch.float64 else max(1e-5, rounding)
        scale = max(expected.abs().max().item(), 1.0)
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * scale)


def test_kernels_are_built() -> None:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel("vitadapter::ms_deform_attn", "CUDA")
    assert has_kernel("vitadapter::ms_deform_attn_fused_backward", "CUDA")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("head_dim", [1, 5, 16, 32, 64, 67])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_equals_reference(dtype: torch.dtype, fused: bool, head_dim: int, levels: int) -> None:
    for points in (3, 4):
        case = Case(
            dtype=dtype,
            fused=fused,
            head_dim=head_dim,
            shapes=PYRAMID[:levels],
            points=points,
            queries=70,
            reference_images=2,
            reference_levels=levels,
        )
        check(case)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deterministic(fused: bool, dtype: torch.dtype) -> None:
    case = Case(dtype=dtype, fused=fused, shapes=PYRAMID, queries=3000)
    with deterministic():
        check(case)
        first, second = on_device(case), on_device(case)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("far", [math.nan, math.inf, 1e30, -9.0])
def test_far_locations_sample_nothing(fused: bool, far: float) -> None:
    case = Case(fused=fused, shapes=PYRAMID)
    case.taps[0][:, 1] = far
    output, grad_value, *grad_taps = on_device(case)
    assert output[:, 1].eq(0).all()
    assert grad_value.isfinite().all()
    assert all(gradient[:, 1].eq(0).all() for gradient in grad_taps)


@pytest.mark.parametrize("fused", [False, True])
def test_more_levels_than_kernel_parameters_hold(fused: bool) -> None:
    check(Case(fused=fused, shapes=((2, 1), (1, 2), (1, 1)) * 50, points=1, queries=3))


def test_level_of_more_numbers_than_32_bits_count() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 16e9:
        pytest.skip("gpu: needs 16 GB of memory")
    height, width = 2**14, 2**13
    value = torch.zeros(1, height * width, 1, 17, device="cuda", dtype=torch.float16)
    value[0, -1] = torch.arange(17.0)
    place = torch.tensor([1 - 0.5 / width, 1 - 0.5 / height], device="cuda")
    weights = torch.ones(1, 1, 1, 1, 1, device="cuda")
    output = torch.ops.vitadapter.ms_deform_attn(
        value, [height, width], place.view(1, 1, 1, 1, 1, 2), weights
    )
    torch.testing.assert_close(output.flatten().cpu(), torch.arange(17.0).half())


def test_misaligned_memory() -> None:
    case = Case(shapes=PYRAMID)
    expected = on_device(case)
    buffer = torch.empty(case.value.numel() + 1, device="cuda")
    value = buffer[1:].view(case.value.shape).copy_(case.value)
    flat = [size for shape in case.shapes for size in shape]
    output = torch.ops.vitadapter.ms_deform_attn(value, flat, *(t.cuda() for t in case.taps))
    assert torch.equal(output.cpu(), expected[0])


def test_runs_on_the_current_stream() -> None:
    case = Case(shapes=PYRAMID)
    expected = on_device(case)[0]
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10_000_000)
        assert torch.equal(on_device(case)[0], expected)


def test_on_another_device_than_the_current() -> None:
    device = f"cuda:{torch.cuda.device_count() - 1}"
    case = Case(shapes=PYRAMID)
    assert torch.equal(on_device(case, device)[0], on_device(case)[0])


def test_more_numbers_than_32_bits_index() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 16e9:
        pytest.skip("gpu: needs 16 GB of memory")
    images, queries = 70_000, 2
    value = torch.randn(images, 2 * 16, 1, 1024, device="cuda", dtype=torch.float16)
    locations = torch.rand(images, queries, 1, 1, 1, 2, device="cuda")
    weights = torch.rand(images, queries, 1, 1, 1, device="cuda")
    output = torch.ops.vitadapter.ms_deform_attn(value, [4, 8], locations, weights)
    expected = torch.ops.vitadapter.ms_deform_attn(value[-3:], [4, 8], locations[-3:], weights[-3:])
    assert torch.equal(output[-3:], expected)


@pytest.mark.parametrize("shapes", [PYRAMID, ((2, 1), (1, 2), (1, 1)) * 50], ids=["usual", "wide"])
@pytest.mark.parametrize("fused", [False, True])
def test_captured_in_a_graph(fused: bool, shapes: tuple[tuple[int, int], ...]) -> None:
    """Whatever waited for the device would spoil the capture."""
    case = Case(fused=fused, shapes=shapes, points=1, queries=3)
    expected = on_device(case)
    forward, backward = (
        getattr(torch.ops.vitadapter, f"ms_deform_attn{'_fused' * fused}{end}")
        for end in ("", "_backward")
    )
    value, grad_output, *taps = (t.cuda() for t in (case.value, case.grad_output, *case.taps))
    flat = [size for shape in case.shapes for size in shape]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [forward(value, flat, *taps), *backward(grad_output, value, flat, *taps)]
    for _ in range(2):
        graph.replay()
        for got, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(got.cpu(), wanted)
