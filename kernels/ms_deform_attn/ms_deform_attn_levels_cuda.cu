// The levels of a problem, and how those of a wide one get into device memory.

#include <algorithm>
#include <limits>
#include <vector>

#include "launch_cuda.h"
#include "taps_cuda.cuh"

namespace vitadapter::cuda {

bool is_wide(const Dimensions& dimensions) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (dimensions.levels > kMostLevels) {
    return true;
  }
  // One row and column more on each side, for taps that touch the border from
  // outside; at least 16, since four bits of a pixel's number tell its corners.
  const int64_t stride =
      std::max<int64_t>(16, dimensions.heads * dimensions.head_dim);
  for (int64_t i = 0; i < dimensions.levels; ++i) {
    const int64_t height = dimensions.spatial_shapes[2 * i];
    const int64_t width = dimensions.spatial_shapes[2 * i + 1];
    if (height + 2 > kMost / stride / (width + 2)) {
      return true;
    }
  }
  return false;
}

void fill_levels(const Dimensions& dimensions, LevelSize* levels) {
  int64_t first_token = 0;
  for (int64_t i = 0; i < dimensions.levels; ++i) {
    const int64_t height = dimensions.spatial_shapes[2 * i];
    const int64_t width = dimensions.spatial_shapes[2 * i + 1];
    levels[i] = {
        first_token, static_cast<int32_t>(height), static_cast<int32_t>(width)};
    first_token += height * width;
  }
}

namespace {

// As many levels as the parameters of one kernel hold.
struct LevelBatch {
  LevelSize levels[kMostLevels];
};

__global__ void __launch_bounds__(kMostLevels) write_levels_kernel(
    const __grid_constant__ LevelBatch batch, int32_t count, LevelSize* to) {
  const auto i = static_cast<int32_t>(threadIdx.x);
  if (i < count) {
    to[i] = batch.levels[i];
  }
}

} // namespace

cudaError_t launch_write_levels(
    const Dimensions& dimensions, LevelSize* to, cudaStream_t stream) {
  std::vector<LevelSize> levels(dimensions.levels);
  fill_levels(dimensions, levels.data());
  for (int64_t first = 0; first < dimensions.levels; first += kMostLevels) {
    const auto count =
        std::min<int64_t>(kMostLevels, dimensions.levels - first);
    LevelBatch batch{};
    std::copy_n(levels.data() + first, count, batch.levels);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1);
    config.blockDim = dim3(kMostLevels);
    config.stream = stream;
    const cudaError_t error = cudaLaunchKernelEx(
        &config, &write_levels_kernel, batch, static_cast<int32_t>(count),
        to + first);
    if (error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

} // namespace vitadapter::cuda
