// Taps: the places that a query samples, how they are read from either form of
// the operator's arguments, and how one lane tells its neighbours of its tap.

#pragma once

#include <cmath>
#include <cstdint>

#include "arguments_cuda.h"
#include "lanes_cuda.cuh"

namespace vitadapter::cuda {

// Kernel parameters hold 4 KiB, this many levels at most.
constexpr int kMostLevels = 128;

// The sizes that a kernel needs, with those that Config knows among them.
template <typename Config>
struct Sizes {
  int64_t tokens;
  int64_t queries;
  int64_t first_image; // of this launch; a grid holds 65535 images
  int32_t first_head;
  int32_t heads;
  int32_t head_dim;
  int32_t levels;
  int32_t points;
  static constexpr int kHeld = Config::kLevels > 0 ? Config::kLevels : kMostLevels;
  // In device memory, or here.
  std::conditional_t<Config::kWide, const LevelSize*, LevelSize[kHeld]> level;

  __device__ int num_levels() const {
    return Config::kLevels > 0 ? Config::kLevels : levels;
  }
  __device__ int num_points() const {
    return Config::kPoints > 0 ? Config::kPoints : points;
  }
  __device__ int num_taps() const {
    return num_levels() * num_points();
  }
  __device__ typename Config::index_t token_stride() const {
    return static_cast<typename Config::index_t>(heads) * head_dim;
  }
};

// The query, head and image that a group of lanes works for. Grid: query tiles
// by heads by images, so that no block sees two images.
struct Place {
  int lane; // within the group
  bool active; // false past the last query; such groups repeat that one
  int64_t image;
  int64_t query;
  int32_t head;
  int64_t item; // of (images, queries, heads)
};

template <typename Config>
__device__ inline Place find_place(const Sizes<Config>& sizes) {
  Place place;
  place.lane = threadIdx.x % Config::kLanes;
  place.query = static_cast<int64_t>(blockIdx.x) * Config::kQueries +
      threadIdx.x / Config::kLanes;
  place.active = place.query < sizes.queries;
  if (!place.active) {
    place.query = sizes.queries - 1;
  }
  place.head = sizes.first_head + static_cast<int32_t>(blockIdx.y);
  place.image = sizes.first_image + blockIdx.z;
  place.item =
      (place.image * sizes.queries + place.query) * sizes.heads + place.head;
  return place;
}

// A sampling point among its four pixels: upper left, upper right, lower left,
// lower right.
template <typename Config>
struct Tap {
  using acc_t = typename Config::acc_t;
  using index_t = typename Config::index_t;
  // 16 * (pixel of the upper left corner, from -width - 1 on), plus one bit
  // for each corner inside the map. 0 for a tap that samples nothing.
  index_t corners = 0;
  acc_t right = 0; // distance from the left column, of a pixel
  acc_t lower = 0; // distance from the upper row
  acc_t weight = 0;

  __device__ bool inside(int corner) const {
    return (corners >> corner & 1) != 0;
  }
  __device__ bool touches() const {
    return (corners & 15) != 0;
  }
  // A corner's part of the sample, in either direction.
  __device__ acc_t across(int corner) const {
    return corner % 2 == 1 ? right : acc_t(1) - right;
  }
  __device__ acc_t down(int corner) const {
    return corner / 2 == 1 ? lower : acc_t(1) - lower;
  }
  // What a unit of the corner's pixel adds to the output.
  __device__ acc_t share(int corner) const {
    return weight * across(corner) * down(corner);
  }
  // In elements from the first pixel of the level.
  __device__ index_t offset(
      int corner,
      int32_t width,
      index_t token_stride) const {
    const index_t step =
        corner % 2 + (corner / 2 == 1 ? width : 0);
    return ((corners >> 4) + step) * token_stride;
  }
};

// The tap at (x, y) in pixels, where pixel centres are whole numbers.
template <typename Config, typename acc_t>
__device__ inline Tap<Config> locate(
    acc_t x,
    acc_t y,
    acc_t weight,
    const LevelSize& level) {
  Tap<Config> tap;
  // Written so that NaN fails, and tested before any conversion to integer.
  if (x >= acc_t(-1) && y >= acc_t(-1) && x < static_cast<acc_t>(level.width) &&
      y < static_cast<acc_t>(level.height)) {
    const acc_t floor_x = std::floor(x);
    const acc_t floor_y = std::floor(y);
    tap.right = x - floor_x;
    tap.lower = y - floor_y;
    tap.weight = weight;
    const auto column = static_cast<int32_t>(floor_x);
    const auto row = static_cast<int32_t>(floor_y);
    const int columns = (column >= 0 && column < level.width ? 1 : 0) +
        (column < level.width - 1 ? 2 : 0);
    const int bits = (row >= 0 && row < level.height ? columns : 0) +
        (row < level.height - 1 ? columns * 4 : 0);
    tap.corners =
        (static_cast<typename Config::index_t>(row) * level.width + column) * 16 +
        bits;
  }
  return tap;
}

// The tap that a lane of this group has found.
template <typename Config>
__device__ inline Tap<Config> from_lane(const Tap<Config>& own, int lane) {
  constexpr int kLanes = Config::kLanes;
  Tap<Config> tap;
  tap.corners = __shfl_sync(kWholeWarp, own.corners, lane, kLanes);
  tap.right = __shfl_sync(kWholeWarp, own.right, lane, kLanes);
  tap.lower = __shfl_sync(kWholeWarp, own.lower, lane, kLanes);
  tap.weight = __shfl_sync(kWholeWarp, own.weight, lane, kLanes);
  return tap;
}

// One query's and head's part of the arguments.
template <typename Config>
struct GivenItem {
  using acc_t = typename Config::acc_t;
  const GivenTaps<typename Config::scalar_t>& taps;
  int64_t first_tap;

  __device__ GivenItem(
      const GivenTaps<typename Config::scalar_t>& given,
      const Sizes<Config>& sizes,
      const Place& place)
      : taps(given), first_tap(place.item * sizes.num_taps()) {}

  __device__ acc_t weight(int tap) const {
    return taps.weights[first_tap + tap];
  }
  __device__ void place_of(
      int tap, int, const LevelSize& level, acc_t& x, acc_t& y) const {
    load_pair(taps.locations + 2 * (first_tap + tap), x, y);
    x = x * static_cast<acc_t>(level.width) - acc_t(0.5);
    y = y * static_cast<acc_t>(level.height) - acc_t(0.5);
  }
};

template <typename Config>
struct RawItem {
  using acc_t = typename Config::acc_t;
  const RawTaps<typename Config::scalar_t>& taps;
  int64_t first_tap;
  int64_t reference;
  __device__ RawItem(
      const RawTaps<typename Config::scalar_t>& raw,
      const Sizes<Config>& sizes,
      const Place& place)
      : taps(raw),
        first_tap(place.item * sizes.num_taps()),
        reference(
            ((raw.reference_images == 1 ? 0 : place.image * sizes.queries) +
             place.query) *
            raw.reference_levels * 2) {
    acc_t most = -INFINITY;
#pragma unroll 1
    for (int tap = place.lane; tap < sizes.num_taps(); tap += Config::kLanes) {
      most = logit(tap) > most ? logit(tap) : most;
    }
    most = max_over_lanes<Config::kLanes>(most);
    acc_t sum = 0;
#pragma unroll 1
    for (int tap = place.lane; tap < sizes.num_taps(); tap += Config::kLanes) {
      sum += std::exp(logit(tap) - most);
    }
    largest() = most;
    scale() = reciprocal(sum_over_lanes<Config::kLanes>(sum));
  }

  // Each thread's own, in shared memory only for want of registers.
  static __device__ acc_t& largest() { // logit
    __shared__ acc_t logits[kThreads];
    return logits[threadIdx.x];
  }
  // Of exp(logit - largest), so that all taps sum to one.
  static __device__ acc_t& scale() {
    __shared__ acc_t scales[kThreads];
    return scales[threadIdx.x];
  }
  __device__ acc_t logit(int tap) const {
    return static_cast<acc_t>(taps.logits[first_tap + tap]);
  }
  __device__ acc_t weight(int tap) const {
    return std::exp(logit(tap) - largest()) * scale();
  }
  __device__ void place_of(
      int tap, int level_index, const LevelSize& level, acc_t& x, acc_t& y)
      const {
    acc_t right, down;
    load_pair(taps.offsets + 2 * (first_tap + tap), right, down);
    const int own_level = taps.reference_levels > 1 ? 2 * level_index : 0;
    load_pair(taps.references + reference + own_level, x, y);
    x = x * static_cast<acc_t>(level.width) + (right - acc_t(0.5));
    y = y * static_cast<acc_t>(level.height) + (down - acc_t(0.5));
  }
};

template <typename Config, bool kFused>
using ItemOf =
    std::conditional_t<kFused, RawItem<Config>, GivenItem<Config>>;

// The tap that this lane looks up for its group, none for index >= num_taps.
template <typename Config, typename Item>
__device__ inline Tap<Config> look_up(
    const Item& item,
    const Sizes<Config>& sizes,
    int index,
    typename Config::acc_t& weight) {
  weight = 0;
  if (index >= sizes.num_taps()) {
    return Tap<Config>();
  }
  const int level_index = index / sizes.num_points();
  const LevelSize& level = sizes.level[level_index];
  typename Config::acc_t x, y;
  item.place_of(index, level_index, level, x, y);
  weight = item.weight(index);
  return locate<Config>(x, y, weight, level);
}

// Walks over the levels in step with the taps, so that nothing is divided.
template <typename Config>
struct LevelCursor {
  const Sizes<Config>& sizes;
  int level = 0;
  int point = 0;

  __device__ void advance() {
    if (++point == sizes.num_points()) {
      point = 0;
      ++level;
    }
  }
};

} // namespace vitadapter::cuda
