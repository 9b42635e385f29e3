// Forward kernel: a group of lanes per (image, query, head), 16 bytes of the
// head per lane. Each lane looks up one tap at a time; all lanes of the group
// then sample it together.

#pragma once

#include "taps_cuda.cuh"

namespace vitadapter::cuda {

// sum += what the tap samples from the channels at map
template <typename Config>
__device__ inline void add_sample(
    const Tap<Config>& tap,
    const typename Config::scalar_t* map,
    int32_t width,
    typename Config::index_t token_stride,
    typename Config::acc_t (&sum)[Config::kVector]) {
  constexpr int kCorners = Config::kCornersAtOnce;
#pragma unroll 1
  for (int first = 0; first < 4; first += kCorners) {
    Channels<typename Config::scalar_t, Config::kVector> pixels[kCorners];
#pragma unroll
    for (int i = 0; i < kCorners; ++i) {
      if (tap.inside(first + i)) {
        pixels[i].load(map + tap.offset(first + i, width, token_stride));
      }
    }
#pragma unroll
    for (int i = 0; i < kCorners; ++i) {
      typename Config::acc_t pixel[Config::kVector];
      pixels[i].convert(pixel);
      const auto weight = tap.share(first + i);
#pragma unroll
      for (int channel = 0; channel < Config::kVector; ++channel) {
        sum[channel] += weight * pixel[channel];
      }
    }
  }
}

// value (images, tokens, heads, head_dim), output (images, queries, heads,
// head_dim).
template <typename Config, typename Taps>
__global__ void __launch_bounds__(kThreads, kBlocks) forward_kernel(
    const __grid_constant__ Sizes<Config> sizes,
    const __grid_constant__ Taps taps,
    const typename Config::scalar_t* __restrict__ value,
    typename Config::scalar_t* __restrict__ output) {
  using acc_t = typename Config::acc_t;
  constexpr int kVector = Config::kVector;
  constexpr int kLanes = Config::kLanes;
  const Place place = find_place(sizes);
  const ItemOf<Config, Taps::kFused> item(taps, sizes, place);
  const auto token_stride = sizes.token_stride();
  const int num_taps = sizes.num_taps();
  const auto* head = value + place.image * sizes.tokens * token_stride +
      place.head * sizes.head_dim;
  // Once, unless head_dim is only known at run time.
  const int head_dim = Config::kAnyHeadDim ? sizes.head_dim : kLanes * kVector;
  for (int first = 0; first < head_dim; first += kLanes * kVector) {
    const int channel = first + place.lane * kVector;
    const bool has_channel = !Config::kAnyHeadDim || channel < head_dim;
    acc_t sum[kVector] = {};
    LevelCursor<Config> cursor{sizes};
#pragma unroll 1
    for (int base = 0; base < num_taps; base += kLanes) {
      acc_t own_weight;
      const Tap<Config> own =
          look_up(item, sizes, base + place.lane, own_weight);
#pragma unroll Config::kTapsAtOnce
      for (int lane = 0; lane < kLanes && base + lane < num_taps; ++lane) {
        const Tap<Config> tap = from_lane(own, lane);
        const LevelSize& level = sizes.level[cursor.level];
        if (has_channel) {
          add_sample(
              tap, head + level.first_token * token_stride + channel,
              level.width, token_stride, sum);
        }
        cursor.advance();
      }
    }
    if (place.active && has_channel) {
      store(sum, output + place.item * head_dim + channel);
    }
  }
}

} // namespace vitadapter::cuda
