// From sizes known at run time to a kernel compiled for them, and its grid.

#pragma once

#include <algorithm>
#include <cstdint>

#include "backward_cuda.cuh"
#include "forward_cuda.cuh"
#include "launch_cuda.h"

namespace vitadapter::cuda {

template <typename Config>
Sizes<Config> sizes_of(const Dimensions& dimensions) {
  Sizes<Config> sizes{};
  sizes.tokens = dimensions.tokens;
  sizes.queries = dimensions.queries;
  sizes.heads = static_cast<int32_t>(dimensions.heads);
  sizes.head_dim = static_cast<int32_t>(dimensions.head_dim);
  sizes.levels = static_cast<int32_t>(dimensions.levels);
  sizes.points = static_cast<int32_t>(dimensions.points);
  if constexpr (Config::kWide) {
    sizes.level = dimensions.device_levels;
  } else {
    fill_levels(dimensions, sizes.level);
  }
  return sizes;
}

// Launches kernel(sizes, arguments...) on `tiles` blocks for each head and
// image, in as many grids as their 65535 rows and layers demand.
template <typename Config, typename... Parameters, typename... Arguments>
cudaError_t launch_over_heads(
    void (*kernel)(Sizes<Config>, Parameters...),
    const Dimensions& dimensions,
    int64_t tiles,
    cudaStream_t stream,
    const Arguments&... arguments) {
  constexpr int64_t kMost = 65535;
  Sizes<Config> sizes = sizes_of<Config>(dimensions);
  for (int64_t image = 0; image < dimensions.images; image += kMost) {
    for (int64_t head = 0; head < dimensions.heads; head += kMost) {
      sizes.first_image = image;
      sizes.first_head = static_cast<int32_t>(head);
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(
          static_cast<unsigned>(tiles),
          static_cast<unsigned>(std::min(kMost, dimensions.heads - head)),
          static_cast<unsigned>(std::min(kMost, dimensions.images - image)));
      config.blockDim = dim3(kThreads);
      config.stream = stream;
      const cudaError_t error =
          cudaLaunchKernelEx(&config, kernel, sizes, Parameters(arguments)...);
      if (error != cudaSuccess) {
        return error;
      }
    }
  }
  return cudaSuccess;
}

template <typename Config>
int64_t query_tiles(const Dimensions& dimensions) {
  return (dimensions.queries + Config::kQueries - 1) / Config::kQueries;
}

// Calls use(Config) with the numbers of levels and points that most models have.
template <typename Scalar, int head_dim, typename Use>
cudaError_t with_taps(const Dimensions& dimensions, const Use& use) {
  // float64 serves tests, not models.
  if constexpr (!std::is_same_v<Scalar, double>) {
    if (dimensions.points == 4) {
      switch (dimensions.levels) {
        case 1:
          return use(Config<Scalar, head_dim, 1, 4>());
        case 3:
          return use(Config<Scalar, head_dim, 3, 4>());
        case 4:
          return use(Config<Scalar, head_dim, 4, 4>());
        default:
          break;
      }
    }
  }
  return use(Config<Scalar, head_dim, 0, 0>());
}

// Calls use(Config) with the fastest Config for these sizes.
template <typename Scalar, typename Use>
cudaError_t with_config(const Dimensions& dimensions, const Use& use) {
  if (is_wide(dimensions)) {
    return use(Config<Scalar, 0, 0, 0, true>());
  }
  switch (dimensions.head_dim) {
    case 16:
      return with_taps<Scalar, 16>(dimensions, use);
    case 32:
      return with_taps<Scalar, 32>(dimensions, use);
    case 64:
      return with_taps<Scalar, 64>(dimensions, use);
    default:
      return use(Config<Scalar, 0, 0, 0>());
  }
}

template <typename Taps>
cudaError_t launch_forward(
    const Dimensions& dimensions,
    const Taps& taps,
    const typename Taps::scalar_t* value,
    typename Taps::scalar_t* output,
    cudaStream_t stream) {
  return with_config<typename Taps::scalar_t>(dimensions, [&](auto config) {
    using Config = decltype(config);
    return launch_over_heads<Config>(
        &forward_kernel<Config, Taps>, dimensions,
        query_tiles<Config>(dimensions), stream, taps, value, output);
  });
}

template <typename Taps>
cudaError_t launch_backward(
    const Dimensions& dimensions,
    const Taps& taps,
    const typename Taps::scalar_t* grad_output,
    const typename Taps::scalar_t* value,
    typename Taps::acc_t* grad_value,
    const GradientsOf<typename Taps::scalar_t, Taps::kFused>& gradients,
    cudaStream_t stream) {
  return with_config<typename Taps::scalar_t>(dimensions, [&](auto config) {
    using Config = decltype(config);
    return launch_over_heads<Config>(
        &backward_kernel<Config, Taps>, dimensions,
        query_tiles<Config>(dimensions), stream, taps, grad_output, value,
        grad_value, gradients);
  });
}

} // namespace vitadapter::cuda
