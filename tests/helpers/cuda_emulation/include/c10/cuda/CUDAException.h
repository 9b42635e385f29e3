// Stands in for PyTorch's header of this name.

#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime.h>

#define C10_CUDA_CHECK(EXPR)                                     \
  do {                                                           \
    const cudaError_t error_ = (EXPR);                           \
    TORCH_CHECK(                                                 \
        error_ == cudaSuccess, "CUDA error: ", static_cast<int>(error_)); \
  } while (0)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())
