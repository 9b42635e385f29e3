"""The CUDA operators, host code and kernels, on an emulated device, against PyTorch in float64."""

import ctypes
import faulthandler
import math
import mmap
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_emulation_cases import (
    FOLDER,
    PYRAMID,
    Case,
    build,
    descending,
    deterministic,
    gradients,
    load,
    reference_gradients,
)
from torch import Tensor
from torch._ops import _OpNamespace

from vitadapter.layers import ms_deform_attn_reference

HALVES = (torch.float16, torch.bfloat16)
NAMES = ("output", "grad_value", "first tap argument", "second", "third")


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


def check(emulated: _OpNamespace, case: Case, expected: list[Tensor] | None = None) -> None:
    """Forward and both backward passes equal the reference."""
    expected = expected or reference_gradients(case)
    got = gradients(emulated, case)
    with deterministic():
        by_rows = gradients(emulated, case)
    for name, *tensors in zip(NAMES, got, by_rows, expected, strict=False):
        assert_close(tensors[0], tensors[2], name)
        assert_close(tensors[1], tensors[2], f"{name}, deterministic")
    assert all(map(torch.equal, got[2:], by_rows[2:])), "gradients of taps without grad_value"


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
def test_equals_reference(
    emulated: _OpNamespace, dtype: torch.dtype, fused: bool, sizes: dict
) -> None:
    check(emulated, Case(dtype=dtype, fused=fused, **sizes))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("head_dim", [7, 32])
def test_reference_points_broadcast(
    emulated: _OpNamespace, images: int, levels: int, head_dim: int
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
def test_order_of_threads_does_not_matter(
    library: Path, emulated: _OpNamespace, fused: bool, head_dim: int
) -> None:
    case = Case(fused=fused, head_dim=head_dim, shapes=PYRAMID, queries=40)
    with descending(library):
        check(emulated, case)
        with deterministic():
            first = gradients(emulated, case)
    with deterministic():
        assert all(map(torch.equal, first, gradients(emulated, case)))


@pytest.mark.parametrize("far", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, 9.0, -9.0])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("fused", [False, True])
def test_far_locations_sample_nothing(
    emulated: _OpNamespace, far: float, axis: int, fused: bool
) -> None:
    head_dim = 5 if axis == 0 else 32
    case = Case(fused=fused, head_dim=head_dim, shapes=PYRAMID, reach=0.5)
    case.taps[0][:, 1, ..., axis] = far
    _, expected_value, *_ = reference_gradients(case)
    output, grad_value, *grad_taps = gradients(emulated, case)
    assert output[:, 1].eq(0).all()
    assert all(gradient[:, 1].eq(0).all() for gradient in grad_taps)
    assert all(gradient.isfinite().all() for gradient in grad_taps)
    assert_close(grad_value, expected_value, "grad_value")


@pytest.mark.parametrize("head_dim", [5, 32])
def test_weight_of_a_tap_outside_does_not_count(emulated: _OpNamespace, head_dim: int) -> None:
    """Not even NaN; a tap inside hands on what its weight is."""
    case = Case(head_dim=head_dim, shapes=PYRAMID)
    locations, weights = case.taps
    locations[:, :, :, 0, 0] = 7.0
    weights[:, :, :, 0, 0] = 0.0
    expected = reference_gradients(case)
    for weight in (math.nan, math.inf):
        weights[:, :, :, 0, 0] = weight
        check(emulated, case, expected)
    locations[:, 1, :, 0, 0] = 0.5
    assert gradients(emulated, case)[0][:, 1].isfinite().logical_not().all()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("head_dim", [5, 32])
def test_tap_outside_gets_no_gradient(emulated: _OpNamespace, head_dim: int, fused: bool) -> None:
    """Not even where the gradient of the output is NaN."""
    case = Case(head_dim=head_dim, shapes=PYRAMID, fused=fused)
    case.taps[0][:, 1, ..., 0] = 70.0
    case.grad_output[:, 1] = math.nan
    _, grad_value, *grad_taps = gradients(emulated, case)
    assert grad_value.isfinite().all()
    assert all(gradient[:, 1].eq(0).all() for gradient in grad_taps)


def test_nothing_outside_a_map_is_touched(emulated: _OpNamespace) -> None:
    """NaN in the other level, head and image does not reach a query's output."""
    case = Case(shapes=((4, 6), (4, 6)), queries=20, head_dim=16)
    case.taps[1][:, :, :, 1] = 0
    case.taps[0][:, :, :, 1] = 5.0
    expected = reference_gradients(case)[0]
    case.value[:, 24:] = math.nan
    case.value[1, :, 1] = math.nan
    output = gradients(emulated, case)[0]
    output, expected = (tensor.unflatten(-1, (2, 16)) for tensor in (output, expected))
    assert output[1, :, 1].isnan().any()
    assert_close(output[0], expected[0], "first image")
    assert_close(output[1, :, 0], expected[1, :, 0], "other head")


def test_on_borders_and_pixel_centres(emulated: _OpNamespace) -> None:
    places = torch.tensor([-0.125, 0.0, 0.125, 0.5, 0.875, 1.0, 1.125])
    grid = torch.cartesian_prod(places, places).reshape(1, 49, 1, 1, 1, 2)
    for head_dim in (16, 3):
        case = Case(images=1, heads=1, head_dim=head_dim, queries=49, points=1, shapes=((4, 4),))
        case.taps[0] = grid.clone()
        check(emulated, case)


def test_infinite_and_nan_logits_stay_in_their_query(emulated: _OpNamespace) -> None:
    case = Case(fused=True, shapes=PYRAMID)
    case.taps[2][:, 1, :, 0, 0] = math.nan
    case.taps[2][:, 2, :, 0, 0] = -math.inf
    expected = reference_gradients(case)[0]
    output = gradients(emulated, case)[0]
    assert output[:, 1].isnan().all()
    assert_close(output[:, 2:], expected[:, 2:], "output")


# --- sizes beyond the fast kernels ----------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("head_dim", [3, 32])
def test_more_levels_than_kernel_parameters_hold(
    emulated: _OpNamespace, fused: bool, head_dim: int
) -> None:
    shapes = ((2, 1), (1, 2), (1, 1)) * 50
    check(emulated, Case(fused=fused, head_dim=head_dim, shapes=shapes, points=1, queries=3))


def test_level_of_more_numbers_than_32_bits_count(emulated: _OpNamespace) -> None:
    """Memory that nobody writes to costs nothing, so the map may be of 4 GiB."""
    height, width, channels = 2**14, 2**13, 17
    numbers = height * width * channels
    assert numbers > 2**31
    with mmap.mmap(-1, 2 * numbers) as memory:
        value = torch.frombuffer(memory, dtype=torch.float16)
        value = value.view(1, height * width, 1, channels)
        value[0, -1] = torch.arange(17.0)
        place = torch.tensor([1 - 0.5 / width, 1 - 0.5 / height]).view(1, 1, 1, 1, 1, 2)
        output = emulated.ms_deform_attn(value, [height, width], place, torch.ones(1, 1, 1, 1, 1))
        del value
    torch.testing.assert_close(output.flatten(), torch.arange(17.0).half())


def test_more_images_than_a_grid_holds(emulated: _OpNamespace) -> None:
    case = Case(images=65_537, heads=1, head_dim=3, queries=1, points=1, shapes=((1, 2),))
    output = emulated.ms_deform_attn(case.value, [1, 2], *case.taps)
    expected = ms_deform_attn_reference(case.value, [(1, 2)], *case.taps)
    torch.testing.assert_close(output, expected)


# --- sanitizers, and whether faults are seen ------------------------------------------------------


# Name -> file, what is right, and what is wrong in its place when FAULT holds.
FAULTS = {
    "off_by_one_corner": (
        "taps_cuda.cuh",
        "(corner / 2 == 1 ? width : 0)",
        "(corner / 2 == 1 ? (FAULT ? width - 1 : width) : 0)",
    ),
    "off_by_one_query": (
        "taps_cuda.cuh",
        "place.active = place.query < sizes.queries",
        "place.active = place.query < sizes.queries + (FAULT ? 1 : 0)",
    ),
    "dropped_lane_of_mask": (
        "lanes_cuda.cuh",
        "constexpr unsigned kWholeWarp = 0xffffffff;",
        "#define kWholeWarp (FAULT ? 0x7fffffff : 0xffffffff)",
    ),
    "dropped_lane_of_sum": (
        "lanes_cuda.cuh",
        "    term += __shfl_xor_sync(kWholeWarp, term, distance);",
        "    if (!(FAULT && threadIdx.x % kWarp == 3))\n"
        "      term += __shfl_xor_sync(kWholeWarp, term, distance);",
    ),
    "image_of_the_block_ignored": (
        "taps_cuda.cuh",
        "sizes.first_image + blockIdx.z",
        "sizes.first_image + (FAULT ? 0 : blockIdx.z)",
    ),
    "atomic_replaced_by_store": (
        "lanes_cuda.cuh",
        "      atomicAdd(to + i, scale * channels[i]);",
        "      if (FAULT) to[i] = scale * channels[i];\n"
        "      else atomicAdd(to + i, scale * channels[i]);",
    ),
    "read_by_another_thread_without_barrier": (
        "backward_cuda.cuh",
        "acc_t right = own.weight * rights[threadIdx.x];",
        "acc_t right = own.weight * rights[threadIdx.x ^ (FAULT ? 1 : 0)];",
    ),
    "no_device_guard": (
        "ms_deform_attn_cuda.cpp",
        "  const c10::cuda::CUDAGuard guard(value_.device());\n"
        "  const auto locations = aligned(sampling_locations);\n"
        "  const auto weights = aligned(attention_weights);\n"
        "  return",
        "  std::unique_ptr<c10::cuda::CUDAGuard> guard;\n"
        "  if (!(FAULT)) guard.reset(new c10::cuda::CUDAGuard(value_.device()));\n"
        "  const auto locations = aligned(sampling_locations);\n"
        "  const auto weights = aligned(attention_weights);\n"
        "  return",
    ),
    "unaligned_vectors": (
        "ms_deform_attn_cuda.cpp",
        "return address % 16 == 0 ? dense : dense.clone();",
        "return address % 16 == 0 || FAULT ? dense : dense.clone();",
    ),
    "wrong_axis_of_map_sizes": (
        "ms_deform_attn_cuda.cpp",
        ".select(1, 1 - i % 2)",
        ".select(1, FAULT ? i % 2 : 1 - i % 2)",
    ),
}


@pytest.fixture(scope="module")
def faulty(kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build with all faults, none of them at work until it is chosen."""
    folder = shutil.copytree(kernels, tmp_path_factory.mktemp("faulty") / "kernels")
    for number, (name, right, wrong) in enumerate(FAULTS.values(), 1):
        text = (folder / name).read_text()
        assert text.count(right) == 1, "the planted fault no longer fits the source"
        wrong = wrong.replace("FAULT", f"emulation::fault == {number}")
        (folder / name).write_text(text.replace(right, wrong))
    return build(folder, True, ["-O0", "-DVITADAPTER_ATOMIC_FLOAT4=0"])


def _status(library: Path, fault: int, cases: list[tuple[Case, list[Tensor]]]) -> None:
    """Exits with 3 where a case fails, 0 if none does."""
    faulthandler.disable()
    torch.set_num_threads(1)
    emulated = load(library, float_only=True)
    ctypes.CDLL(str(library)).emulation_set_fault(fault)
    try:
        for case, expected in cases:
            check(emulated, case, expected)
    except (RuntimeError, AssertionError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(3)


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_planted_fault_is_seen(faulty: Path, fault: str) -> None:
    """In a process of its own, since some faults write where they must not."""
    number = ["none", *FAULTS].index(fault)
    both = [Case(fused=fused, shapes=PYRAMID, queries=5) for fused in (False, True)]
    # Begins in the midst of 16 bytes.
    memory = torch.empty(both[0].value.numel() + 1)
    both[0].value = memory[1:].view(both[0].value.shape).copy_(both[0].value)
    cases = [(case, reference_gradients(case)) for case in both]
    process = multiprocessing.get_context("fork").Process(
        target=_status, args=(faulty, number, cases)
    )
    process.start()
    process.join(120)
    process.kill()
    assert process.exitcode is not None, "the kernels hang"
    # A signal ends those that spoil the heap.
    assert (process.exitcode == 0) == (fault == "none")


REVERSAL = """
#include <cstdlib>
#include <stdexcept>
#include <cuda_runtime.h>

template <int variant>
__global__ void reverse(int* numbers) {
  __shared__ int copy[64];
  copy[threadIdx.x] = numbers[threadIdx.x];
  if (variant == 1 || (variant == 2 && threadIdx.x != 5)) __syncthreads();
  if (variant == 3) __shfl_sync(0xffffffff, 0, 0);
  numbers[threadIdx.x] = copy[63 - threadIdx.x];
}

int main(int, char** arguments) {
  void (*kernels[])(int*) = {reverse<0>, reverse<1>, reverse<2>, reverse<3>};
  int numbers[64];
  for (int i = 0; i < 64; ++i) numbers[i] = i + 1;
  ++emulation::guards;
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(64);
  config.stream = emulation::current_stream();
  try {
    cudaLaunchKernelEx(&config, kernels[std::atoi(arguments[1])], numbers);
  } catch (const std::runtime_error&) {
    return 3;
  }
  for (int i = 0; i < 64; ++i) {
    if (numbers[i] != 64 - i) return 1;
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def reversal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reversal")
    (folder / "reversal.cpp").write_text(REVERSAL)
    flags = ["-std=c++20", f"-I{FOLDER / 'include'}", "-o", folder / "reversal"]
    command = ["g++", *flags, folder / "reversal.cpp", FOLDER / "emulation.cpp"]
    subprocess.run(command, check=True)
    return folder / "reversal"


@pytest.mark.parametrize(
    ("variant", "status"),
    [(1, 0), (0, 1), (2, 3), (3, 1)],
    ids=["barrier", "no barrier", "one thread misses it", "only the warp waits"],
)
def test_missed_barrier_is_seen(reversal: Path, variant: int, status: int) -> None:
    """Our kernels need no barrier, so that this small one shows what its absence does."""
    done = subprocess.run([reversal, str(variant)], check=False)
    assert done.returncode == status
