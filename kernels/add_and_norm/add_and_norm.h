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

// total = x + branch and its norm, rows of `channels` each. Branch_: float or Half_.
template <typename Half_, typename Branch_>
struct AddAndNorm {
  using Half = Half_;
  using Branch = Branch_;

  int64_t rows;
  int channels;
  float eps;
  const float* x;
  const Branch* branch; // may be null; total is not written then
  const float* weight;
  const float* bias;
  float* total;
  Half* normed;
  float* mean;
  float* rstd;
};

template <typename Half_>
struct AddAndNormBackward {
  using Half = Half_;

  int64_t rows;
  int channels;
  int64_t blocks;
  const Half* grad_normed;
  const float* grad_total; // may be null
  const float* total;
  const float* mean;
  const float* rstd;
  const float* weight;
  float* grad_x;
  Half* grad_branch; // may be null
  float* grad_affine; // (2, blocks, channels): parts of those of weight and bias
};

// Problem: one of the above, with at least one row.
template <typename Problem>
cudaError_t launch(const Problem& problem, cudaStream_t stream);

} // namespace vitadapter::cuda
