// The gradient of value without atomics, for deterministic algorithms: each row
// of pixels of each head belongs to one warp, which goes through all taps of
// its level in order and adds those that touch its row.

#pragma once

#include "taps_cuda.cuh"

namespace vitadapter::cuda {

constexpr int kRowsPerBlock = kThreads / kWarp;

// Adds the share of one tap to the two pixels of this row that it touches.
template <typename Config>
__device__ inline void add_to_row(
    const Tap<Config>& tap,
    int row_of_tap, // 0 if this is its upper row, 1 if its lower
    int32_t width,
    const Sizes<Config>& sizes,
    const typename Config::scalar_t* grad_output,
    typename Config::acc_t* grad_map) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const int corner = 2 * row_of_tap + side;
    if (!tap.inside(corner)) {
      continue;
    }
    const auto scale = tap.share(corner);
    auto* pixel = grad_map + tap.offset(corner, width, sizes.token_stride());
    for (int channel = lane; channel < sizes.head_dim; channel += kWarp) {
      pixel[channel] +=
          scale * static_cast<typename Config::acc_t>(grad_output[channel]);
    }
  }
}

// grad_value (images, tokens, heads, head_dim), zero at first.
template <typename Config>
__global__ void __launch_bounds__(kThreads, kBlocks) grad_value_rows_kernel(
    const __grid_constant__ Sizes<Config> sizes,
    const __grid_constant__ GivenTaps<typename Config::scalar_t> taps,
    const typename Config::scalar_t* __restrict__ grad_output,
    typename Config::acc_t* __restrict__ grad_value) {
  const int lane = threadIdx.x % kWarp;
  int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock +
      threadIdx.x / kWarp;
  int level_index = 0;
  while (level_index < sizes.levels && row >= sizes.level[level_index].height) {
    row -= sizes.level[level_index++].height;
  }
  if (level_index == sizes.levels) {
    return; // the whole warp, past the last row
  }
  const LevelSize& level = sizes.level[level_index];
  const int64_t image = sizes.first_image + blockIdx.z;
  const int32_t head = sizes.first_head + static_cast<int32_t>(blockIdx.y);
  auto* grad_map = grad_value +
      (image * sizes.tokens + level.first_token) * sizes.token_stride() +
      static_cast<int64_t>(head) * sizes.head_dim;
  for (int64_t first = 0; first < sizes.queries; first += kWarp) {
    Place place{lane, first + lane < sizes.queries, image, first + lane, head};
    if (!place.active) {
      place.query = sizes.queries - 1;
    }
    place.item =
        (image * sizes.queries + place.query) * sizes.heads + head;
    const GivenItem<Config> item(taps, sizes, place);
    for (int point = 0; point < sizes.points; ++point) {
      const int index = level_index * sizes.points + point;
      typename Config::acc_t x, y;
      item.place_of(index, level_index, level, x, y);
      const auto own = locate<Config>(x, y, item.weight(index), level);
      const bool samples = place.active && own.touches();
      const int64_t upper_row = samples ? static_cast<int64_t>(std::floor(y)) : 0;
      const unsigned upper =
          __ballot_sync(kWholeWarp, samples && upper_row == row);
      const unsigned lower =
          __ballot_sync(kWholeWarp, samples && upper_row == row - 1);
      for (unsigned left = upper | lower; left != 0; left &= left - 1) {
        const int source = __ffs(static_cast<int>(left)) - 1;
        const int64_t grad_row =
            ((image * sizes.queries + first + source) * sizes.heads + head) *
            sizes.head_dim;
        add_to_row(
            from_lane(own, source), lower >> source & 1, level.width, sizes,
            grad_output + grad_row, grad_map);
      }
    }
  }
}

} // namespace vitadapter::cuda
