// Launches of the kernels that add a branch to a residual stream and normalise
// the sum, free of PyTorch: pointers, sizes and a stream.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace vitadapter::cuda {

// Channels that one row may have.
constexpr int64_t kMostChannels = 4096;
// Blocks of the backward pass, each of which adds up the gradients of weight and
// bias over its own rows. More of them would write more sums, to be read again.
constexpr int64_t kMostBlocks = 512;

// total = x + branch and its norm, rows of `channels` each. Without a branch
// (null), total is not written. Branch: float or Half.
template <typename Half, typename Branch>
cudaError_t launch_add_and_norm(
    int64_t rows,
    int64_t channels,
    float eps,
    const float* x,
    const Branch* branch,
    const float* weight,
    const float* bias,
    float* total,
    Half* normed,
    float* mean,
    float* rstd,
    cudaStream_t stream);

// grad_affine: (2, blocks, channels), parts of the gradients of weight and bias.
// grad_total and grad_branch may be null.
template <typename Half>
cudaError_t launch_add_and_norm_backward(
    int64_t rows,
    int64_t channels,
    int64_t blocks,
    const Half* grad_normed,
    const float* grad_total,
    const float* total,
    const float* mean,
    const float* rstd,
    const float* weight,
    float* grad_x,
    Half* grad_branch,
    float* grad_affine,
    cudaStream_t stream);

} // namespace vitadapter::cuda
