// Launches of the kernels, free of PyTorch: pointers, sizes and a stream. The
// results are those of the runtime; kernels are defined in *_cuda.cuh.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "arguments_cuda.h"

namespace vitadapter::cuda {

struct Dimensions {
  int64_t images;
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t queries;
  int64_t levels;
  int64_t points;
  const int64_t* spatial_shapes; // (h0, w0, h1, w1, ...), on the host
  const LevelSize* device_levels; // in device memory if is_wide(), else unused
};

// Whether only the slower kernels can index such a problem: the others have 32
// bits for an offset inside one level of one image, and 128 levels at most.
bool is_wide(const Dimensions& dimensions);

// The levels as kernels read them, `dimensions.levels` of them.
void fill_levels(const Dimensions& dimensions, LevelSize* levels);

// Writes the levels to device memory. They travel as parameters of kernels: a
// copy from the host would wait for the device, and could not be captured in a
// CUDA graph.
cudaError_t launch_write_levels(
    const Dimensions& dimensions, LevelSize* to, cudaStream_t stream);

// Taps: GivenTaps or RawTaps. Nothing may be empty. All pointers lie at
// multiples of 16 bytes.
template <typename Taps>
cudaError_t launch_forward(
    const Dimensions& dimensions,
    const Taps& taps,
    const typename Taps::scalar_t* value,
    typename Taps::scalar_t* output,
    cudaStream_t stream);

// grad_value must be zero; it may be null.
template <typename Taps>
cudaError_t launch_backward(
    const Dimensions& dimensions,
    const Taps& taps,
    const typename Taps::scalar_t* grad_output,
    const typename Taps::scalar_t* value,
    typename Taps::acc_t* grad_value,
    const GradientsOf<typename Taps::scalar_t, Taps::kFused>& gradients,
    cudaStream_t stream);

// grad_value must be zero. The same bits in every run.
template <typename Scalar>
cudaError_t launch_grad_value_rows(
    const Dimensions& dimensions,
    const GivenTaps<Scalar>& taps,
    const Scalar* grad_output,
    acc_of<Scalar>* grad_value,
    cudaStream_t stream);

} // namespace vitadapter::cuda
