// How the lanes of a warp share the channels of a head, and how a lane reads
// and writes its share: 16 bytes at a time.

#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "arguments_cuda.h"

// One instruction adds four floats to memory from compute capability 9.0 on.
#ifndef VITADAPTER_ATOMIC_FLOAT4
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900 || CUDART_VERSION < 12010
#define VITADAPTER_ATOMIC_FLOAT4 0
#else
#define VITADAPTER_ATOMIC_FLOAT4 1
#endif
#endif

namespace vitadapter::cuda {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffff;
constexpr int kThreads = 128; // per block
// Blocks per multiprocessor that registers must suffice for: 64 per thread.
constexpr int kBlocks = 8;

// What the compiler knows of a problem; 0 stands for "only known at run time".
// `wide` kernels count with 64 bits inside a level too, and read the levels from
// device memory: for problems that is_wide() finds too large for the others.
template <typename Scalar, int head_dim, int levels, int points, bool wide = false>
struct Config {
  using scalar_t = Scalar;
  using acc_t = acc_of<Scalar>;
  using index_t = std::conditional_t<wide, int64_t, int32_t>;
  static constexpr bool kWide = wide;
  static constexpr bool kAnyHeadDim = head_dim == 0;
  static constexpr int kTaps = levels * points;
  static constexpr int kPoints = points;
  static constexpr int kLevels = levels;
  static constexpr int kVector = kAnyHeadDim ? 1 : 16 / sizeof(Scalar);
  // Lanes that share one query of one head; they never straddle a warp.
  static constexpr int kLanes = kAnyHeadDim ? kWarp : head_dim / kVector;
  static constexpr int kQueries = kThreads / kLanes; // per block
  // Loads that a lane has under way: more would need more than 64 registers.
  static constexpr int kCornersAtOnce =
      kAnyHeadDim || sizeof(Scalar) == 8 ? 1 : 4;
  static constexpr int kTapsAtOnce = kAnyHeadDim || sizeof(Scalar) == 8 ? 1 : 2;
  static_assert(kWarp % kLanes == 0);
};

// A lane's channels as they lie in memory, zero at first. Converted only where
// they are used: in half precision they take half the registers.
template <typename scalar_t, int kVector>
struct Channels {
  static_assert(kVector * sizeof(scalar_t) == sizeof(uint4));
  uint4 bits = {0, 0, 0, 0};

  __device__ void load(const scalar_t* __restrict__ from) {
    bits = __ldg(reinterpret_cast<const uint4*>(from));
  }
  template <typename acc_t>
  __device__ void convert(acc_t (&channels)[kVector]) const {
    scalar_t loaded[kVector];
    memcpy(loaded, &bits, sizeof(bits));
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      channels[i] = static_cast<acc_t>(loaded[i]);
    }
  }
};

template <typename scalar_t>
struct Channels<scalar_t, 1> {
  scalar_t channel = 0;

  __device__ void load(const scalar_t* __restrict__ from) {
    channel = *from;
  }
  template <typename acc_t>
  __device__ void convert(acc_t (&channels)[1]) const {
    channels[0] = static_cast<acc_t>(channel);
  }
};

template <typename acc_t, typename scalar_t, int kVector>
__device__ inline void store(
    const acc_t (&channels)[kVector],
    scalar_t* __restrict__ to) {
  if constexpr (kVector == 1) {
    to[0] = static_cast<scalar_t>(channels[0]);
  } else {
    scalar_t stored[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      stored[i] = static_cast<scalar_t>(channels[i]);
    }
    uint4 bits;
    memcpy(&bits, stored, sizeof(bits));
    *reinterpret_cast<uint4*>(to) = bits;
  }
}

// to += scale * channels, while other lanes may add there too.
template <typename acc_t, int kVector>
__device__ inline void add_atomically(
    const acc_t (&channels)[kVector],
    acc_t scale,
    acc_t* to) {
#if VITADAPTER_ATOMIC_FLOAT4
  if constexpr (std::is_same_v<acc_t, float> && kVector % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      atomicAdd(
          reinterpret_cast<float4*>(to + i),
          make_float4(
              scale * channels[i], scale * channels[i + 1],
              scale * channels[i + 2], scale * channels[i + 3]));
    }
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      atomicAdd(to + i, scale * channels[i]);
    }
  }
}

// A pair of neighbours, as x and y are stored: one access.
template <typename acc_t, typename scalar_t>
__device__ inline void load_pair(const scalar_t* from, acc_t& x, acc_t& y) {
  struct alignas(2 * sizeof(scalar_t)) Pair {
    scalar_t x, y;
  };
  const Pair pair = *reinterpret_cast<const Pair*>(from);
  x = static_cast<acc_t>(pair.x);
  y = static_cast<acc_t>(pair.y);
}

template <typename acc_t, typename scalar_t>
__device__ inline void store_pair(acc_t x, acc_t y, scalar_t* to) {
  struct alignas(2 * sizeof(scalar_t)) Pair {
    scalar_t x, y;
  };
  *reinterpret_cast<Pair*>(to) =
      Pair{static_cast<scalar_t>(x), static_cast<scalar_t>(y)};
}

// The sum over a group of kLanes lanes, in every one of them.
template <int kLanes, typename T>
__device__ inline T sum_over_lanes(T term) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    term += __shfl_xor_sync(kWholeWarp, term, distance);
  }
  return term;
}

template <int kLanes, typename T>
__device__ inline T max_over_lanes(T term) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(kWholeWarp, term, distance);
    term = other > term ? other : term;
  }
  return term;
}

// Of a number not below one, so that the fast division is exact enough.
__device__ inline float reciprocal(float x) {
  return __fdividef(1.0f, x);
}

__device__ inline double reciprocal(double x) {
  return 1.0 / x;
}

} // namespace vitadapter::cuda
