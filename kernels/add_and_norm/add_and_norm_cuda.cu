// Layer norm of a sum. A block has one row at a time; each of its threads holds a
// few channels in registers, always the same ones, so that what is read is read
// once, and sums have one order.

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

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

template <typename Half, typename Branch>
__global__ void __launch_bounds__(kMostThreads) add_and_norm_kernel(
    int channels,
    float eps,
    const float* x,
    const Branch* branch,
    const float* weight,
    const float* bias,
    float* total,
    Half* normed,
    float* mean,
    float* rstd) {
  const int64_t row = blockIdx.x;
  const int64_t start = row * channels;
  float values[kPerThread];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = threadIdx.x + i * blockDim.x;
    values[i] = 0;
    if (c < channels) {
      values[i] = x[start + c];
      if (branch != nullptr) {
        values[i] += static_cast<float>(branch[start + c]);
        total[start + c] = values[i];
      }
      sum += values[i];
    }
  }
  const float row_mean = sum_over_block(sum, 0).first / channels;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = threadIdx.x + i * blockDim.x;
    if (c < channels) {
      values[i] -= row_mean;
      squares += values[i] * values[i];
    }
  }
  const float variance = sum_over_block(squares, 0).first / channels;
  const float row_rstd = 1.0f / sqrtf(variance + eps);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = threadIdx.x + i * blockDim.x;
    if (c < channels) {
      normed[start + c] =
          static_cast<Half>(values[i] * row_rstd * weight[c] + bias[c]);
    }
  }
  if (threadIdx.x == 0) {
    mean[row] = row_mean;
    rstd[row] = row_rstd;
  }
}

template <typename Half>
__global__ void __launch_bounds__(kMostThreads) add_and_norm_backward_kernel(
    int64_t rows,
    int channels,
    const Half* grad_normed,
    const float* grad_total,
    const float* total,
    const float* mean,
    const float* rstd,
    const float* weight,
    float* grad_x,
    Half* grad_branch,
    float* grad_affine) {
  float grad_weight[kPerThread] = {};
  float grad_bias[kPerThread] = {};
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t start = row * channels;
    const float row_mean = mean[row];
    const float row_rstd = rstd[row];
    float grads[kPerThread];
    float standard[kPerThread];
    float sum = 0;
    float along = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int c = threadIdx.x + i * blockDim.x;
      grads[i] = standard[i] = 0;
      if (c < channels) {
        const float grad = static_cast<float>(grad_normed[start + c]);
        standard[i] = (total[start + c] - row_mean) * row_rstd;
        grad_weight[i] += grad * standard[i];
        grad_bias[i] += grad;
        grads[i] = grad * weight[c];
        sum += grads[i];
        along += grads[i] * standard[i];
      }
    }
    const Sums sums = sum_over_block(sum, along);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int c = threadIdx.x + i * blockDim.x;
      if (c < channels) {
        float grad =
            (grads[i] - sums.first / channels - standard[i] * (sums.second / channels)) *
            row_rstd;
        if (grad_total != nullptr) {
          grad += grad_total[start + c];
        }
        grad_x[start + c] = grad;
        if (grad_branch != nullptr) {
          grad_branch[start + c] = static_cast<Half>(grad);
        }
      }
    }
  }
  const int64_t start = static_cast<int64_t>(blockIdx.x) * channels;
  float* const grad_biases =
      grad_affine + static_cast<int64_t>(gridDim.x) * channels;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = threadIdx.x + i * blockDim.x;
    if (c < channels) {
      grad_affine[start + c] = grad_weight[i];
      grad_biases[start + c] = grad_bias[i];
    }
  }
}

} // namespace

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
    cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(rows));
  config.blockDim = dim3(threads_of(channels));
  config.stream = stream;
  return cudaLaunchKernelEx(
      &config, &add_and_norm_kernel<Half, Branch>, static_cast<int>(channels),
      eps, x, branch, weight, bias, total, normed, mean, rstd);
}

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
    cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads_of(channels));
  config.stream = stream;
  return cudaLaunchKernelEx(
      &config, &add_and_norm_backward_kernel<Half>, rows,
      static_cast<int>(channels), grad_normed, grad_total, total, mean, rstd,
      weight, grad_x, grad_branch, grad_affine);
}

#define INSTANTIATE_FORWARD(Half, Branch)                                     \
  template cudaError_t launch_add_and_norm<Half, Branch>(                     \
      int64_t, int64_t, float, const float*, const Branch*, const float*,     \
      const float*, float*, Half*, float*, float*, cudaStream_t);
#define INSTANTIATE_BACKWARD(Half)                                            \
  template cudaError_t launch_add_and_norm_backward<Half>(                    \
      int64_t, int64_t, int64_t, const Half*, const float*, const float*,     \
      const float*, const float*, const float*, float*, Half*, float*,        \
      cudaStream_t);

INSTANTIATE_FORWARD(c10::Half, float)
INSTANTIATE_FORWARD(c10::Half, c10::Half)
INSTANTIATE_FORWARD(c10::BFloat16, float)
INSTANTIATE_FORWARD(c10::BFloat16, c10::BFloat16)
INSTANTIATE_BACKWARD(c10::Half)
INSTANTIATE_BACKWARD(c10::BFloat16)

} // namespace vitadapter::cuda
