// How the channels of a head are cut into vectors, and rows asked for ahead of
// time: what forward and backward share.

#pragma once

#include "cpu_kernels.h"
#include "cpu_simd.h"
#include "cpu_taps.h"

namespace vitadapter {
namespace VITADAPTER_ISA {
namespace {

// How one head's channels are cut into vectors of N lanes. Where head_dim is no
// multiple of N, the last vector overlaps the one before.
template <int N>
struct Columns {
  int64_t whole; // vectors without the overlapping one
  int64_t overlap; // channels of the last vector that were seen before

  explicit Columns(int64_t channels)
      : whole(channels / N), overlap(channels % N == 0 ? 0 : N - channels % N) {}
};

// Calls Body::run<NV>(first channel, overlap) for groups of NV vectors that
// together cover the channels; accumulators of NV vectors fit the registers.
template <int N, bool FULL_REGISTER, typename Body>
VITADAPTER_INLINE void for_each_group(int64_t channels, Body& body) {
  const Columns<N> columns(channels);
  int64_t vector = 0;
  if constexpr (FULL_REGISTER) { // a narrower N means less than two vectors
    for (; vector + 8 <= columns.whole; vector += 8) {
      body.template run<8>(vector * N, 0);
    }
    if (vector + 4 <= columns.whole) {
      body.template run<4>(vector * N, 0);
      vector += 4;
    }
    if (vector + 2 <= columns.whole) {
      body.template run<2>(vector * N, 0);
      vector += 2;
    }
  }
  if (vector < columns.whole) {
    body.template run<1>(vector * N, 0);
  }
  if (columns.overlap > 0) {
    body.template run<1>(channels - N, columns.overlap);
  }
}

// Calls Body::run<N, FULL_REGISTER>() for the widest vector of N lanes that a
// head fills.
template <typename T, typename Body>
VITADAPTER_INLINE void with_width(int64_t head_dim, const Body& body) {
  constexpr int W = kLanes<T>;
  if (head_dim >= W) {
    return body.template run<W, true>();
  }
  if constexpr (W > 8) {
    if (head_dim >= 8) {
      return body.template run<8, false>();
    }
  }
  if constexpr (W > 4) {
    if (head_dim >= 4) {
      return body.template run<4, false>();
    }
  }
  if constexpr (W > 2) {
    if (head_dim >= 2) {
      return body.template run<2, false>();
    }
  }
  body.template run<1, false>();
}

template <typename T>
VITADAPTER_INLINE void place_block(
    const CpuArguments<T>& args,
    TapBlock<T>& block,
    int64_t image_and_head,
    int64_t number) {
  block.image = image_and_head / args.heads;
  block.head = image_and_head % args.heads;
  block.first_query = number * kQueryBlock;
  const int64_t left = args.queries - block.first_query;
  block.queries = left < kQueryBlock ? left : kQueryBlock;
}

// The rows of one head of one image; that of a token begins `stride` further on
// than that of the token before. T may be const.
template <typename T>
struct HeadRows {
  T* rows;
  int64_t stride;
};

template <typename T, typename U>
VITADAPTER_INLINE HeadRows<U> rows_in_place(
    const CpuArguments<T>& args,
    U* all,
    int64_t image_and_head) {
  const int64_t stride = args.heads * args.head_dim;
  const int64_t image = image_and_head / args.heads;
  const int64_t head = image_and_head % args.heads;
  return {all + image * args.tokens * stride + head * args.head_dim, stride};
}

// Likewise the rows of output or grad_output, from the block's first query on.
template <typename T, typename U>
VITADAPTER_INLINE HeadRows<U> query_rows(
    const CpuArguments<T>& args,
    U* all,
    const TapBlock<T>& block) {
  const int64_t stride = args.heads * args.head_dim;
  const int64_t first = block.image * args.queries + block.first_query;
  return {all + first * stride + block.head * args.head_dim, stride};
}

template <typename T>
inline void pack_rows(
    const CpuArguments<T>& args,
    HeadRows<const T> from,
    T* to) {
  for (int64_t token = 0; token < args.tokens; ++token) {
    memcpy(
        to + token * args.head_dim, from.rows + token * from.stride,
        args.head_dim * sizeof(T));
  }
}

// Taps between asking for the rows of a tap and using them: long enough for the
// third-level cache, short enough for the rows to stay in the first.
constexpr int64_t kForwardDistance = 40;
constexpr int64_t kBackwardDistance = 24;

// Without this most of the time would go into waiting for rows: those of one
// head lie heads * head_dim apart, so that each is a miss of its own.
template <int CHANNELS, typename T>
VITADAPTER_INLINE void prefetch_rows(
    const TapBlock<T>& block,
    int64_t tap,
    const T* rows,
    int64_t stride) {
  if (tap >= block.taps || block.tokens[0][tap] < 0) {
    return;
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const T* const row = rows + block.tokens[c][tap] * stride;
#pragma GCC unroll 8
    for (int i = 0; i < CHANNELS; i += 64 / static_cast<int>(sizeof(T))) {
      __builtin_prefetch(row + i);
    }
  }
}

} // namespace
} // namespace VITADAPTER_ISA
} // namespace vitadapter
