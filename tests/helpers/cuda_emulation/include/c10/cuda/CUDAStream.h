// Stands in for PyTorch's header of this name.

#pragma once

#include <cuda_runtime.h>

namespace c10::cuda {

class CUDAStream {
 public:
  cudaStream_t stream() const {
    return emulation::current_stream();
  }
};

inline CUDAStream getCurrentCUDAStream() {
  return {};
}

} // namespace c10::cuda
