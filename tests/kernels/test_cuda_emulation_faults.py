"""Whether the emulated device sees the faults that CUDA kernels can have."""

import ctypes
import faulthandler
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
    check,
    load,
    reference_gradients,
)
from torch import Tensor

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
    process.join(600)
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
