// Backward kernel: lanes are divided as in the forward kernel. Sums over the
// channels go by shuffles, sums over the queries by atomic additions.

#pragma once

#include "taps_cuda.cuh"

namespace vitadapter::cuda {

// What a tap samples, and how that changes by one pixel to the right and down,
// along the gradient of the output.
template <typename acc_t>
struct Slopes {
  acc_t sample = 0;
  acc_t right = 0;
  acc_t down = 0;

  template <typename Config>
  __device__ void add(const Tap<Config>& tap, int corner, acc_t along) {
    sample += tap.across(corner) * tap.down(corner) * along;
    right += (corner % 2 == 1 ? along : -along) * tap.down(corner);
    down += (corner / 2 == 1 ? along : -along) * tap.across(corner);
  }
};

// One group's place in the maps and its gradient of the output.
template <typename Config>
struct HeadMaps {
  using acc_t = typename Config::acc_t;
  using scalar_t = typename Config::scalar_t;
  const scalar_t* value;
  acc_t* grad_value; // null: not wanted
  int64_t head; // in either, in elements, with this lane's first channel
  const scalar_t* grad_output;
  acc_t grad[Config::kVector]; // this lane's channels, where they fit
};

// This lane's part of a tap's slopes and of the gradient of value, with all its
// channels at once. The level lies at `first` in value and grad_value.
template <typename Config>
__device__ inline Slopes<typename Config::acc_t> visit_vector(
    const Tap<Config>& tap,
    int64_t first,
    int32_t width,
    typename Config::index_t token_stride,
    const HeadMaps<Config>& maps) {
  using acc_t = typename Config::acc_t;
  constexpr int kCorners = Config::kCornersAtOnce;
  Slopes<acc_t> slopes;
#pragma unroll 1
  for (int batch = 0; batch < 4; batch += kCorners) {
    Channels<typename Config::scalar_t, Config::kVector> pixels[kCorners];
#pragma unroll
    for (int i = 0; i < kCorners; ++i) {
      if (tap.inside(batch + i)) {
        pixels[i].load(
            maps.value + first + tap.offset(batch + i, width, token_stride));
      }
    }
#pragma unroll
    for (int i = 0; i < kCorners; ++i) {
      const int corner = batch + i;
      acc_t pixel[Config::kVector];
      pixels[i].convert(pixel);
      acc_t along = 0;
#pragma unroll
      for (int channel = 0; channel < Config::kVector; ++channel) {
        along += maps.grad[channel] * pixel[channel];
      }
      slopes.add(tap, corner, along);
      if (maps.grad_value != nullptr && tap.inside(corner)) {
        add_atomically(
            maps.grad, tap.share(corner),
            maps.grad_value + first + tap.offset(corner, width, token_stride));
      }
    }
  }
  return slopes;
}

// The same for any number of channels, one of every kWarp for each lane.
template <typename Config>
__device__ inline Slopes<typename Config::acc_t> visit_channels(
    const Tap<Config>& tap,
    int64_t first,
    int32_t width,
    const Sizes<Config>& sizes,
    int lane,
    const HeadMaps<Config>& maps) {
  using acc_t = typename Config::acc_t;
  Slopes<acc_t> slopes;
#pragma unroll 1
  for (int corner = 0; corner < 4; ++corner) {
    if (!tap.inside(corner)) {
      continue;
    }
    const int64_t pixel =
        first + tap.offset(corner, width, sizes.token_stride());
    acc_t along = 0;
#pragma unroll 1
    for (int channel = lane; channel < sizes.head_dim; channel += kWarp) {
      const acc_t grad[1] = {static_cast<acc_t>(maps.grad_output[channel])};
      along += grad[0] * static_cast<acc_t>(maps.value[pixel + channel]);
      if (maps.grad_value != nullptr) {
        add_atomically(
            grad, tap.share(corner), maps.grad_value + pixel + channel);
      }
    }
    slopes.add(tap, corner, along);
  }
  return slopes;
}

template <typename Config>
__device__ inline Slopes<typename Config::acc_t> visit_tap(
    const Tap<Config>& tap,
    const LevelSize& level,
    const Sizes<Config>& sizes,
    const Place& place,
    const HeadMaps<Config>& maps) {
  const auto token_stride = sizes.token_stride();
  const int64_t first = maps.head + level.first_token * token_stride;
  if constexpr (Config::kAnyHeadDim) {
    return visit_channels(tap, first, level.width, sizes, place.lane, maps);
  } else {
    return visit_vector(tap, first, level.width, token_stride, maps);
  }
}

template <typename Config>
__device__ inline HeadMaps<Config> head_maps(
    const Sizes<Config>& sizes,
    const Place& place,
    const typename Config::scalar_t* grad_output,
    const typename Config::scalar_t* value,
    typename Config::acc_t* grad_value) {
  const int lane_channel = Config::kAnyHeadDim ? 0 : place.lane * Config::kVector;
  HeadMaps<Config> maps;
  maps.value = value;
  maps.grad_value = grad_value;
  maps.head = place.image * sizes.tokens * sizes.token_stride() +
      place.head * sizes.head_dim +
      lane_channel;
  maps.grad_output = grad_output + place.item * sizes.head_dim + lane_channel;
  if constexpr (!Config::kAnyHeadDim) {
    Channels<typename Config::scalar_t, Config::kVector> channels;
    channels.load(maps.grad_output);
    channels.convert(maps.grad);
  }
  return maps;
}

// The mean sample, along the gradient of the output, that the gradient of a
// softmax subtracts. Costs a pass over the taps: for when their samples cannot
// be kept.
template <typename Config, typename Item>
__device__ inline typename Config::acc_t mean_sample(
    const Item& item,
    const Sizes<Config>& sizes,
    const Place& place,
    HeadMaps<Config> maps) {
  maps.grad_value = nullptr;
  typename Config::acc_t mean = 0;
  LevelCursor<Config> cursor{sizes};
  for (int base = 0; base < sizes.num_taps(); base += Config::kLanes) {
    typename Config::acc_t weight;
    const Tap<Config> own = look_up(item, sizes, base + place.lane, weight);
#pragma unroll 1
    for (int lane = 0;
         lane < Config::kLanes && base + lane < sizes.num_taps(); ++lane) {
      const Tap<Config> tap = from_lane(own, lane);
      if (tap.touches()) {
        mean += tap.weight *
            visit_tap(tap, sizes.level[cursor.level], sizes, place, maps)
                .sample;
      }
      cursor.advance();
    }
  }
  return sum_over_lanes<Config::kLanes>(mean);
}

// grad_output (images, queries, heads, head_dim); grad_value, zero at first and
// null where another kernel computes it, as value, but of acc_t.
template <typename Config, typename Taps>
__global__ void __launch_bounds__(kThreads, kBlocks) backward_kernel(
    const __grid_constant__ Sizes<Config> sizes,
    const __grid_constant__ Taps taps,
    const typename Config::scalar_t* __restrict__ grad_output,
    const typename Config::scalar_t* __restrict__ value,
    typename Config::acc_t* __restrict__ grad_value,
    const GradientsOf<typename Config::scalar_t, Taps::kFused> gradients) {
  using acc_t = typename Config::acc_t;
  constexpr int kLanes = Config::kLanes;
  constexpr bool kFewTaps = Config::kTaps > 0; // kept in shared memory
  // Else kept where their gradient will be, if that is precise enough.
  constexpr bool kKept =
      kFewTaps || std::is_same_v<acc_t, typename Config::scalar_t>;
  constexpr int kRounds = kFewTaps ? (Config::kTaps + kLanes - 1) / kLanes : 1;
  const Place place = find_place(sizes);
  const ItemOf<Config, Taps::kFused> item(taps, sizes, place);
  const HeadMaps<Config> maps =
      head_maps(sizes, place, grad_output, value, grad_value);
  const int num_taps = sizes.num_taps();
  acc_t mean = 0;
  if constexpr (Taps::kFused && !kKept) {
    mean = mean_sample(item, sizes, place, maps);
  }
  // What this lane keeps of the tap that it looked up. Not in registers, which
  // are short; and no thread reads what another wrote, so there is no barrier.
  __shared__ acc_t samples[kRounds][kThreads], rights[kThreads], downs[kThreads],
      means[kThreads];
  means[threadIdx.x] = 0;
  LevelCursor<Config> cursor{sizes};
#pragma unroll 1
  for (int base = 0; base < num_taps; base += kLanes) {
    acc_t weight;
    Tap<Config> own = look_up(item, sizes, base + place.lane, weight);
    if (!place.active) {
      own.corners = 0;
    }
    const int round = kFewTaps ? base / kLanes : 0;
#pragma unroll 1
    for (int lane = 0; lane < kLanes && base + lane < num_taps; ++lane) {
      const Tap<Config> tap = from_lane(own, lane);
      const LevelSize& level = sizes.level[cursor.level];
      // A tap outside has no gradient, not even where that of the output is NaN.
      Slopes<acc_t> slopes;
      if (tap.touches()) {
        slopes = visit_tap(tap, level, sizes, place, maps);
      }
      slopes.sample = sum_over_lanes<kLanes>(slopes.sample);
      slopes.right = sum_over_lanes<kLanes>(slopes.right);
      slopes.down = sum_over_lanes<kLanes>(slopes.down);
      if (lane == place.lane) {
        samples[round][threadIdx.x] = slopes.sample;
        rights[threadIdx.x] = slopes.right;
        downs[threadIdx.x] = slopes.down;
      }
      cursor.advance();
    }
    const int tap = base + place.lane;
    if (place.active && tap < num_taps) {
      acc_t right = own.weight * rights[threadIdx.x];
      acc_t down = own.weight * downs[threadIdx.x];
      if constexpr (Taps::kFused) {
        store_pair(right, down, gradients.offsets + 2 * (item.first_tap + tap));
        if constexpr (!kFewTaps) {
          const acc_t sample = samples[round][threadIdx.x];
          gradients.logits[item.first_tap + tap] =
              static_cast<typename Config::scalar_t>(
                  kKept ? sample : weight * (sample - mean));
        }
        if constexpr (kKept) {
          means[threadIdx.x] += own.weight * samples[round][threadIdx.x];
        }
      } else {
        const LevelSize& level = sizes.level[tap / sizes.num_points()];
        right *= static_cast<acc_t>(level.width);
        down *= static_cast<acc_t>(level.height);
        store_pair(right, down, gradients.locations + 2 * (item.first_tap + tap));
        gradients.weights[item.first_tap + tap] = samples[round][threadIdx.x];
      }
    }
  }
  if constexpr (Taps::kFused && kKept) {
    mean = sum_over_lanes<kLanes>(means[threadIdx.x]);
    if (place.active) {
#pragma unroll 1
      for (int tap = place.lane; tap < num_taps; tap += kLanes) {
        auto& gradient = gradients.logits[item.first_tap + tap];
        const acc_t sample = kFewTaps ? samples[kFewTaps ? tap / kLanes : 0][threadIdx.x]
                                      : static_cast<acc_t>(gradient);
        gradient = static_cast<typename Config::scalar_t>(
            item.weight(tap) * (sample - mean));
      }
    }
  }
}

} // namespace vitadapter::cuda
