// Stands in for PyTorch's header of this name. Launches without a guard fail.

#pragma once

#include <c10/core/Device.h>
#include <cuda_runtime.h>

namespace c10::cuda {

class CUDAGuard {
 public:
  explicit CUDAGuard(c10::Device) {
    ++emulation::guards;
  }
  CUDAGuard(const CUDAGuard&) = delete;
  CUDAGuard& operator=(const CUDAGuard&) = delete;
  ~CUDAGuard() {
    --emulation::guards;
  }
};

} // namespace c10::cuda
