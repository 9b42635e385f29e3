"""The CUDA kernels, run on an emulated device, against PyTorch in float64."""

import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_emulation_cases import (
    FOLDER,
    SANITIZERS,
    Case,
    EmulationError,
    build,
    reference_gradients,
    run,
)
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
PYRAMID = ((5, 7), (3, 2), (1, 3))


@pytest.fixture(scope="session")
def kernels(repository: Path) -> Path:
    return repository / "kernels" / "ms_deform_attn"


@pytest.fixture(scope="session")
def emulated(kernels: Path) -> Path:
    return build(kernels)


def assert_close(got: Tensor, expected: Tensor, name: str) -> None:
    rounding = torch.finfo(got.dtype).eps
    scale = max(expected.abs().max().item(), 1.0)
    tolerance = 1e-12 if got.dtype == torch.float64 else max(5e-6, rounding)
    torch.testing.assert_close(
        got.double(),
        expected,
        rtol=tolerance,
        atol=tolerance * scale,
        msg=lambda message: f"{name}: {message}",
    )


def check(executable: Path, case: Case, descending: bool = False) -> None:
    """Forward and both backward passes equal the reference."""
    output, grad_value, *grad_taps = reference_gradients(case)
    (got,) = run(executable, case, "forward", descending)
    assert_close(got, output, "output")
    got_value, *got_taps = run(executable, case, "backward", descending)
    assert_close(got_value, grad_value, "grad_value")
    if case.fused:
        grad_taps = grad_taps[1:]
    for index, (ours, expected) in enumerate(zip(got_taps, grad_taps, strict=True)):
        assert_close(ours, expected, f"gradient of tap argument {index}")
    apart = run(executable, case, "backward", descending, atomics=False)
    assert all(map(torch.equal, apart[1:], got_taps[1:])), "without grad_value"
    if not case.fused:
        (rows,) = run(executable, case, "grad_value_rows", descending)
        assert_close(rows, grad_value, "grad_value by rows")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        dict(head_dim=16),
        dict(head_dim=16, shapes=PYRAMID, queries=70, heads=1),
        dict(head_dim=32, shapes=PYRAMID),
        dict(head_dim=32, shapes=(*PYRAMID, (2, 2)), queries=33, heads=1),
        dict(head_dim=32, shapes=PYRAMID[:2], points=3, queries=1),
        dict(head_dim=64, shapes=PYRAMID, heads=1),
        dict(head_dim=64, shapes=PYRAMID, points=1),
        dict(head_dim=1, shapes=PYRAMID, points=5),
        dict(head_dim=5, shapes=PYRAMID[:2], points=17, queries=3, heads=1),
        dict(head_dim=67, points=2, queries=5, images=3, heads=1),
    ],
    ids=lambda sizes: "-".join(f"{k}={v}" for k, v in sizes.items() if k != "shapes"),
)
def test_equals_reference(emulated: Path, dtype: torch.dtype, fused: bool, sizes: dict) -> None:
    check(emulated, Case(dtype=dtype, fused=fused, **sizes))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("head_dim", [7, 32])
def test_reference_points_broadcast(
    emulated: Path, images: int, levels: int, head_dim: int
) -> None:
    case = Case(
        fused=True,
        head_dim=head_dim,
        shapes=PYRAMID,
        reference_images=images,
        reference_levels=levels,
    )
    check(emulated, case)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("head_dim", [3, 16, 32])
def test_order_of_threads_does_not_matter(emulated: Path, fused: bool, head_dim: int) -> None:
    case = Case(fused=fused, head_dim=head_dim, shapes=PYRAMID, queries=40)
    check(emulated, case, descending=True)
    launches = ["forward"] if fused else ["forward", "grad_value_rows"]
    for launch in launches:
        first, second = (run(emulated, case, launch, order)[0] for order in (False, True))
        assert torch.equal(first, second)


@pytest.mark.parametrize("far", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, 9.0, -9.0])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("fused", [False, True])
def test_far_locations_sample_nothing(emulated: Path, far: float, axis: int, fused: bool) -> None:
    head_dim = 5 if axis == 0 else 32
    case = Case(fused=fused, head_dim=head_dim, shapes=PYRAMID, reach=0.5)
    places = case.taps[0]
    places[:, 1, ..., axis] = far
    _, expected_value, *_ = reference_gradients(case)
    (output,) = run(emulated, case, "forward")
    assert output[:, 1].eq(0).all()
    grad_value, *grad_taps = run(emulated, case, "backward")
    assert all(gradient[:, 1].eq(0).all() for gradient in grad_taps)
    assert all(gradient.isfinite().all() for gradient in grad_taps)
    assert_close(grad_value, expected_value, "grad_value")


def test_nothing_outside_a_map_is_touched(emulated: Path) -> None:
    """NaN in the other level, head and image does not reach a query's output."""
    case = Case(shapes=((4, 6), (4, 6)), queries=20, head_dim=16)
    case.taps[1][:, :, :, 1] = 0
    case.taps[0][:, :, :, 1] = 5.0
    expected = reference_gradients(case)[0]
    case.value[:, 24:] = math.nan
    case.value[1, :, 1] = math.nan
    (output,) = run(emulated, case, "forward")
    output, expected = (tensor.unflatten(-1, (2, 16)) for tensor in (output, expected))
    assert output[1, :, 1].isnan().any()
    assert_close(output[0], expected[0], "first image")
    assert_close(output[1, :, 0], expected[1, :, 0], "other head")


def test_on_borders_and_pixel_centres(emulated: Path) -> None:
    places = torch.tensor([-0.125, 0.0, 0.125, 0.5, 0.875, 1.0, 1.125])
    grid = torch.cartesian_prod(places, places).reshape(1, 49, 1, 1, 1, 2)
    for head_dim in (16, 3):
        case = Case(images=1, heads=1, head_dim=head_dim, queries=49, points=1, shapes=((4, 4),))
        case.taps[0] = grid.clone()
        check(emulated, case)


def test_infinite_and_nan_logits_stay_in_their_query(emulated: Path) -> None:
    case = Case(fused=True, shapes=PYRAMID)
    case.taps[2][:, 1, :, 0, 0] = math.nan
    case.taps[2][:, 2, :, 0, 0] = -math.inf
    expected = reference_gradients(case)[0]
    (output,) = run(emulated, case, "forward")
    assert output[:, 1].isnan().all()
    assert_close(output[:, 2:], expected[:, 2:], "output")


# --- sanitizers, and whether faults are seen ------------------------------------------------------


def test_under_sanitizers(kernels: Path) -> None:
    """Also the only build with scalar atomics, as before compute capability 9.0."""
    executable = build(kernels, True, [*SANITIZERS, "-DVITADAPTER_ATOMIC_FLOAT4=0"])
    for fused in (False, True):
        for sizes in (
            dict(head_dim=16, shapes=PYRAMID),
            dict(head_dim=32, shapes=(*PYRAMID, (1, 1)), queries=17),
            dict(head_dim=64, points=3),
            dict(head_dim=5, shapes=PYRAMID),
        ):
            check(executable, Case(fused=fused, reach=5.0, **sizes))
            far = Case(fused=fused, **sizes)
            far.taps[0][:, ::2] = math.nan
            far.taps[0][:, 1::2, ..., 0] = 1e30
            run(executable, far, "forward")
            run(executable, far, "backward")


FAULTS = {
    "off_by_one_corner": (
        "taps_cuda.cuh",
        "corner % 2 + (corner / 2 == 1 ? width : 0)",
        "corner % 2 + (corner / 2 == 1 ? width - 1 : 0)",
    ),
    "off_by_one_query": (
        "taps_cuda.cuh",
        "place.active = place.query < sizes.queries",
        "place.active = place.query <= sizes.queries",
    ),
    "dropped_lane_of_mask": ("lanes_cuda.cuh", "0xffffffff", "0x7fffffff"),
    "dropped_lane_of_sum": (
        "lanes_cuda.cuh",
        "    term += __shfl_xor_sync(kWholeWarp, term, distance);",
        "    if (threadIdx.x % kWarp != 3)\n"
        "      term += __shfl_xor_sync(kWholeWarp, term, distance);",
    ),
    "image_of_the_block_ignored": (
        "taps_cuda.cuh",
        "sizes.first_image + blockIdx.z",
        "sizes.first_image",
    ),
    "atomic_replaced_by_store": (
        "lanes_cuda.cuh",
        "atomicAdd(to + i, scale * channels[i]);",
        "to[i] = scale * channels[i];",
    ),
    "read_by_another_thread_without_barrier": (
        "backward_cuda.cuh",
        "acc_t right = own.weight * rights[threadIdx.x];",
        "acc_t right = own.weight * rights[threadIdx.x ^ 1];",
    ),
}


def check_both_forms(executable: Path) -> None:
    for fused in (False, True):
        check(executable, Case(fused=fused, shapes=PYRAMID, queries=5))


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_seen(kernels: Path, tmp_path: Path, fault: str) -> None:
    name, right, wrong = FAULTS[fault]
    faulty = shutil.copytree(kernels, tmp_path / "kernels")
    text = (faulty / name).read_text()
    assert text.count(right) == 1, "the planted fault no longer fits the source"
    (faulty / name).write_text(text.replace(right, wrong))
    executable = build(faulty, True, ["-O0", "-DVITADAPTER_ATOMIC_FLOAT4=0"])
    with pytest.raises((EmulationError, AssertionError)):
        check_both_forms(executable)


REVERSAL = """
#include <cstdio>
#include <cuda_runtime.h>

__global__ void reverse(int* numbers) {
  __shared__ int copy[64];
  copy[threadIdx.x] = numbers[threadIdx.x];
  BARRIER
  numbers[threadIdx.x] = copy[63 - threadIdx.x];
}

int main() {
  int numbers[64];
  for (int i = 0; i < 64; ++i) numbers[i] = i + 1;
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(64);
  cudaLaunchKernelEx(&config, &reverse, numbers);
  for (int i = 0; i < 64; ++i) {
    if (numbers[i] != 64 - i) return 1;
  }
  return 0;
}
"""


@pytest.mark.parametrize(
    ("barrier", "status"),
    [
        ("__syncthreads();", 0),
        ("", 1),
        ("if (threadIdx.x != 5) __syncthreads();", 3),
        ("__shfl_sync(0xffffffff, 0, 0);", 1),
    ],
)
def test_missed_barrier_is_seen(tmp_path: Path, barrier: str, status: int) -> None:
    """Our kernels need no barrier, so that this small one shows what its absence does."""
    source = tmp_path / "reversal.cpp"
    source.write_text(REVERSAL.replace("BARRIER", barrier))
    program = tmp_path / "reversal"
    emulation = FOLDER / "emulation.cpp"
    flags = ["-std=c++20", f"-I{FOLDER / 'include'}", "-o", program]
    subprocess.run(["g++", *flags, source, emulation], check=True)
    assert subprocess.run([program], capture_output=True, check=False).returncode == status
