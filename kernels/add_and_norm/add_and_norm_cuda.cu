// Layer norm of a sum. A block has one row at a time; each of its threads holds a
// few channels in registers, always the same ones, so that what is read is read
// once, and sums have one order.

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <utility>

#include "add_and_norm.h"

namespace vitadapter::cuda {
namespace {

constexpr int kPerThread = 8;
constexpr int kWarp = 32;
// More of them would not have enough registers.
constexpr int kMostThreads = 512;
static_assert(kPerThread * kMostThreads >= kMostChannels);
constexpr unsigned kAllLanes = 0xffffffff;

// Whole warps that hold a row.
int threads_of(int64_t channels) {
  int threads = kWarp;
  while (threads * kPerThread < channels) {
    threads *= 2;
  }
  return threads;
}

struct Sums {
  float first;
  float second;
};

// Over the threads of a block, the same for each of them.
__device__ Sums sum_over_block(float first, float second) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    first += __shfl_xor_sync(kAllLanes, first, lanes);
    second += __shfl_xor_sync(kAllLanes, second, lanes);
  }
  const int warps = blockDim.x / kWarp;
  if (warps == 1) {
    return {first, second};
  }
  __shared__ float sums[2][kWarp];
  __syncthreads(); // the last sums have been read
  if (threadIdx.x % kWarp == 0) {
    sums[0][threadIdx.x / kWarp] = first;
    sums[1][threadIdx.x / kWarp] = second;
  }
  __syncthreads();
  first = second = 0;
  for (int warp = 0; warp < warps; ++warp) {
    first += sums[0][warp];
    second += sums[1][warp];
  }
  return {first, second};
}

template <typename Problem>
__global__ void __launch_bounds__(kMostThreads)
    add_and_norm_kernel(const Problem p) {
  const int64_t row = blockIdx.x;
  const int64_t start = row * p.channels;
  float values[kPerThread];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = threadIdx.x + i * blockDim.x;
    values[i] = 0;
    if (c < p.channels) {
      values[i] = p.x[start + c];
      if (p.branch != nullptr) {
        values[i] += static_cast<float>(p.branch[start + c]);
        p.total[start + c] = values[i];
      }
      sum += values[i];
    }
  }
  const float mean = sum_over_block(sum, 0).first / p.channels;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = threadIdx.x + i * blockDim.x;
    if (c < p.channels) {
      values[i] -= mean;
      squares += values[i] * values[i];
    }
  }
  const float variance = sum_over_block(squares, 0).first / p.channels;
  const float rstd = 1.0f / sqrtf(variance + p.eps);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = threadIdx.x + i * blockDim.x;
    if (c < p.channels) {
      p.normed[start + c] = static_cast<typename Problem::Half>(
          values[i] * rstd * p.weight[c] + p.bias[c]);
    }
  }
  if (threadIdx.x == 0) {
    p.mean[row] = mean;
    p.rstd[row] = rstd;
  }
}

template <typename Problem>
__global__ void __launch_bounds__(kMostThreads)
    add_and_norm_backward_kernel(const Problem p) {
  float grad_weight[kPerThread] = {};
  float grad_bias[kPerThread] = {};
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t start = row * p.channels;
    const float mean = p.mean[row];
    const float rstd = p.rstd[row];
    float grads[kPerThread];
    float standard[kPerThread];
    float sum = 0;
    float along = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int c = threadIdx.x + i * blockDim.x;
      grads[i] = standard[i] = 0;
      if (c < p.channels) {
        const float grad = static_cast<float>(p.grad_normed[start + c]);
        standard[i] = (p.total[start + c] - mean) * rstd;
        grad_weight[i] += grad * standard[i];
        grad_bias[i] += grad;
        grads[i] = grad * p.weight[c];
        sum += grads[i];
        along += grads[i] * standard[i];
      }
    }
    const Sums sums = sum_over_block(sum, along);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int c = threadIdx.x + i * blockDim.x;
      if (c < p.channels) {
        const float across = standard[i] * (sums.second / p.channels);
        float grad = (grads[i] - sums.first / p.channels - across) * rstd;
        if (p.grad_total != nullptr) {
          grad += p.grad_total[start + c];
        }
        p.grad_x[start + c] = grad;
        if (p.grad_branch != nullptr) {
          p.grad_branch[start + c] = static_cast<typename Problem::Half>(grad);
        }
      }
    }
  }
  const int64_t start = static_cast<int64_t>(blockIdx.x) * p.channels;
  float* const of_bias = p.grad_affine + p.blocks * p.channels;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = threadIdx.x + i * blockDim.x;
    if (c < p.channels) {
      p.grad_affine[start + c] = grad_weight[i];
      of_bias[start + c] = grad_bias[i];
    }
  }
}

// A kernel, and how many blocks it takes.
template <typename Half, typename Branch>
auto kernel_of(const AddAndNorm<Half, Branch>& problem) {
  return std::pair(&add_and_norm_kernel<AddAndNorm<Half, Branch>>, problem.rows);
}

template <typename Half>
auto kernel_of(const AddAndNormBackward<Half>& problem) {
  return std::pair(
      &add_and_norm_backward_kernel<AddAndNormBackward<Half>>, problem.blocks);
}

} // namespace

template <typename Problem>
cudaError_t launch(const Problem& problem, cudaStream_t stream) {
  const auto [kernel, blocks] = kernel_of(problem);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads_of(problem.channels));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, problem);
}

#define INSTANTIATE(...) \
  template cudaError_t launch(const __VA_ARGS__&, cudaStream_t);

INSTANTIATE(AddAndNorm<c10::Half, float>)
INSTANTIATE(AddAndNorm<c10::Half, c10::Half>)
INSTANTIATE(AddAndNorm<c10::BFloat16, float>)
INSTANTIATE(AddAndNorm<c10::BFloat16, c10::BFloat16>)
INSTANTIATE(AddAndNormBackward<c10::Half>)
INSTANTIATE(AddAndNormBackward<c10::BFloat16>)

} // namespace vitadapter::cuda
