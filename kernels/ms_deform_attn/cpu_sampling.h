// The loops over taps and channels, forward and backward, for one instruction
// set, and the table of functions that the rest of the extension calls.

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

// --- forward ---------------------------------------------------------------

// Taps between asking for the rows of a tap and adding them up: long enough for
// the third-level cache, short enough for the rows to stay in the first.
constexpr int64_t kPrefetchDistance = 40;

template <typename T, int N>
struct ForwardBlock {
  const CpuArguments<T>& args;
  const TapBlock<T>& block;

  // Far more than half of the time would go into waiting for rows otherwise.
  template <int NV>
  VITADAPTER_INLINE void prefetch(const T* value, int64_t stride, int64_t t) const {
    if (t >= block.taps || block.tokens[0][t] < 0) {
      return;
    }
    constexpr int kLine = 64 / sizeof(T);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const T* const row = value + block.tokens[c][t] * stride;
#pragma GCC unroll 8
      for (int i = 0; i < NV * N; i += kLine) {
        __builtin_prefetch(row + i);
      }
    }
  }

  template <int NV>
  void run(int64_t channel, int64_t) {
    using V = Vec<T, N>;
    // Several sums per vector, since one addition takes several cycles.
    constexpr int kChains = NV >= 8 ? 1 : NV >= 4 ? 2 : 4;
    const int64_t taps = args.num_levels * args.points;
    const int64_t stride = args.heads * args.head_dim;
    const T* const value = args.value + block.image * args.tokens * stride +
        block.head * args.head_dim + channel;
    T* output = args.output + (block.image * args.queries + block.first_query) * stride +
        block.head * args.head_dim + channel;
    int64_t t = 0;
    for (int64_t q = 0; q < block.queries; ++q, output += stride) {
      V sums[kChains][NV] = {};
      for (const int64_t end = t + taps; t < end; ++t) {
        prefetch<NV>(value, stride, t + kPrefetchDistance);
        if (block.tokens[0][t] < 0) {
          continue;
        }
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
          const T* const row = value + block.tokens[c][t] * stride;
          const T weight = block.corner_weights[c][t];
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) {
            sums[c % kChains][v] += load<N>(row + v * N) * weight;
          }
        }
      }
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
#pragma GCC unroll 4
        for (int chain = 1; chain < kChains; ++chain) {
          sums[0][v] += sums[chain][v];
        }
        store<N>(output + v * N, sums[0][v]);
      }
    }
  }
};

template <typename T, int N, bool FULL_REGISTER>
void forward_items(
    const CpuArguments<T>& args,
    T* scratch,
    int64_t begin,
    int64_t end) {
  const LevelTable<T> table(args, scratch);
  TapBlock<T> block(args.num_levels * args.points, scratch);
  const int64_t blocks = (args.queries + kQueryBlock - 1) / kQueryBlock;
  for (int64_t item = begin; item < end; ++item) {
    place_block(args, block, item / blocks, item % blocks);
    read_taps(args, table, block);
    ForwardBlock<T, N> body{args, block};
    for_each_group<N, FULL_REGISTER>(args.head_dim, body);
  }
}

// --- backward --------------------------------------------------------------

// One query: the products of grad_output with the four corner rows of each tap,
// left as partial sums, and the gradient of those rows.
template <typename T, int N, bool TAPS, bool VALUE>
struct BackwardQuery {
  using V = Vec<T, N>;
  // Lanes of partial sums per corner that are kept for reduce_products().
  static constexpr int kStored = N >= 4 ? N : 4;

  const CpuArguments<T>& args;
  const TapBlock<T>& block;
  const T* grad_output; // of this query and head
  int64_t row; // of head and image in value, without the token
  int64_t first_tap;
  T* partial; // (taps, kStored)
  bool first_group;

  template <int NV>
  void run(int64_t channel, int64_t overlap) {
    V grad[NV];
    for (int v = 0; v < NV; ++v) {
      grad[v] = load<N>(grad_output + channel + v * N);
    }
    for (int64_t i = 0; i < overlap; ++i) {
      grad[0][i] = 0;
    }
    const int64_t taps = args.num_levels * args.points;
    const int64_t stride = args.heads * args.head_dim;
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t at = first_tap + t;
      if (block.tokens[0][at] < 0) {
        continue;
      }
      int64_t rows[4];
      for (int c = 0; c < 4; ++c) {
        rows[c] = row + block.tokens[c][at] * stride + channel;
      }
      if constexpr (TAPS) {
        add_products<NV>(grad, rows, partial + t * kStored);
      }
      if constexpr (VALUE) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
          const T weight = block.corner_weights[c][at];
          T* const to = args.grad_value + rows[c];
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) {
            store<N>(to + v * N, load<N>(to + v * N) + grad[v] * weight);
          }
        }
      }
    }
    first_group = false;
  }

  template <int NV>
  VITADAPTER_INLINE void add_products(
      const V (&grad)[NV],
      const int64_t (&rows)[4],
      T* sums) const {
    V products[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      products[c] = load<N>(args.value + rows[c]) * grad[0];
#pragma GCC unroll 8
      for (int v = 1; v < NV; ++v) {
        products[c] += load<N>(args.value + rows[c] + v * N) * grad[v];
      }
    }
    if constexpr (N >= 4) {
      const V upper = fold<T, N, N>(products[0], products[1]);
      const V lower = fold<T, N, N>(products[2], products[3]);
      const V all = fold<T, N, N / 2>(upper, lower);
      store<N>(sums, first_group ? all : load<N>(sums) + all);
    } else {
      for (int c = 0; c < 4; ++c) {
        T sum = first_group ? T(0) : sums[c];
        for (int i = 0; i < N; ++i) {
          sum += products[c][i];
        }
        sums[c] = sum;
      }
    }
  }
};

// The partial sums of one query, (taps, N), to products (taps, 4); may write up
// to three taps more.
template <typename T, int N>
VITADAPTER_INLINE void
reduce_products(const T* partial, T* products, int64_t taps) {
  if constexpr (N == 16) {
    for (int64_t t = 0; t < taps; t += 4) {
      const T* p = partial + t * N;
      const auto a = fold<T, N, 4>(load<N>(p), load<N>(p + N));
      const auto b = fold<T, N, 4>(load<N>(p + 2 * N), load<N>(p + 3 * N));
      store<N>(products + t * 4, fold<T, N, 2>(a, b));
    }
  } else if constexpr (N == 8) {
    for (int64_t t = 0; t < taps; t += 2) {
      const T* p = partial + t * N;
      store<N>(products + t * 4, fold<T, N, 2>(load<N>(p), load<N>(p + N)));
    }
  } else {
    memcpy(products, partial, taps * 4 * sizeof(T));
  }
}

// From the products of grad_output with the corner rows to the gradients of
// pixel coordinates, left in block.pixels, and of weights, in grad_weights.
template <typename T>
inline void differentiate_taps(
    TapBlock<T>& block,
    const LevelTable<T>& table,
    const T* products,
    T* grad_weights) {
  constexpr int N = kLanes<T>;
  using V = Vec<T, N>;
  int64_t at = 0; // in the table
  for (int64_t i = 0; i < block.taps; i += N) {
    V x, y;
    T* const pixels = block.pixels + 2 * i;
    deinterleave<T, N>(load<N>(pixels), load<N>(pixels + N), x, y);
    const Cell<T, N> cell(x, y, table, at);
    const Shares<T, N> share(cell);
    V even[2], odd[2], p00, p01, p10, p11;
    for (int half = 0; half < 2; ++half) {
      const T* from = products + 4 * i + half * 2 * N;
      deinterleave<T, N>(load<N>(from), load<N>(from + N), even[half], odd[half]);
    }
    deinterleave<T, N>(even[0], even[1], p00, p10);
    deinterleave<T, N>(odd[0], odd[1], p01, p11);
    const V zero = {};
    p00 = cell.inside ? p00 : zero;
    p01 = cell.inside ? p01 : zero;
    p10 = cell.inside ? p10 : zero;
    p11 = cell.inside ? p11 : zero;
    store<N>(
        grad_weights + i,
        share.y0 * (share.x0 * p00 + share.x1 * p01) +
            share.y1 * (share.x0 * p10 + share.x1 * p11));
    const V weight = load<N>(block.weights + i);
    const V left = share.y0 * p00 + share.y1 * p10;
    const V right = share.y0 * p01 + share.y1 * p11;
    const V upper = share.x0 * p00 + share.x1 * p01;
    const V lower = share.x0 * p10 + share.x1 * p11;
    V low, high;
    interleave<T, N>(
        weight * ((cell.has_x1 ? right : zero) - (cell.has_x0 ? left : zero)),
        weight * ((cell.has_y1 ? lower : zero) - (cell.has_y0 ? upper : zero)),
        low, high);
    store<N>(pixels, low);
    store<N>(pixels + N, high);
    at = at + N == table.period ? 0 : at + N;
  }
}

// Sum over the points of one level, (x, y).
template <typename T>
VITADAPTER_INLINE void sum_pairs(const T* pairs, int64_t points, T* sum) {
  T x = 0;
  T y = 0;
  for (int64_t p = 0; p < points; ++p) {
    x += pairs[2 * p];
    y += pairs[2 * p + 1];
  }
  sum[0] = x;
  sum[1] = y;
}

template <typename T>
inline void write_fused_gradients(
    const CpuArguments<T>& args,
    const TapBlock<T>& block,
    const T* grad_weights) {
  const int64_t taps = args.num_levels * args.points;
  T* reference = args.grad_reference +
      ((block.image * args.heads + block.head) * args.queries + block.first_query) *
          args.num_levels * 2;
  for (int64_t q = 0; q < block.queries; ++q) {
    const int64_t query = block.image * args.queries + block.first_query + q;
    const int64_t to = (query * args.heads + block.head) * taps;
    const T* const pixels = block.pixels + 2 * q * taps;
    memcpy(args.grad_taps + 2 * to, pixels, 2 * taps * sizeof(T));
    for (int64_t l = 0; l < args.num_levels; ++l, reference += 2) {
      sum_pairs(pixels + 2 * l * args.points, args.points, reference);
      reference[0] *= static_cast<T>(args.levels[l].width);
      reference[1] *= static_cast<T>(args.levels[l].height);
    }
    // Softmax: d loss / d logit = weight * (grad - sum(weight * grad))
    const T* const weights = block.weights + q * taps;
    const T* const grads = grad_weights + q * taps;
    const T mean = dot(weights, grads, taps);
    int64_t t = 0;
    for (; t + 4 <= taps; t += 4) {
      store<4>(
          args.grad_per_tap + to + t,
          load<4>(weights + t) * (load<4>(grads + t) - mean));
    }
    for (; t < taps; ++t) {
      args.grad_per_tap[to + t] = weights[t] * (grads[t] - mean);
    }
  }
}

template <typename T>
inline void write_gradients(
    const CpuArguments<T>& args,
    const TapBlock<T>& block,
    const T* grad_weights) {
  const int64_t taps = args.num_levels * args.points;
  for (int64_t q = 0; q < block.queries; ++q) {
    const int64_t query = block.image * args.queries + block.first_query + q;
    const int64_t to = (query * args.heads + block.head) * taps;
    memcpy(args.grad_per_tap + to, grad_weights + q * taps, taps * sizeof(T));
    for (int64_t l = 0; l < args.num_levels; ++l) {
      affine_pairs<T, 0>(
          block.pixels + 2 * (q * taps + l * args.points),
          args.grad_taps + 2 * (to + l * args.points), args.points,
          static_cast<T>(args.levels[l].width),
          static_cast<T>(args.levels[l].height), T(0), T(0));
    }
  }
}

// One block of queries of one head, over `channels` channels from `channel` on
// (all of them where TAPS).
template <typename T, int N, bool FULL_REGISTER, bool TAPS, bool VALUE>
VITADAPTER_INLINE void backward_block(
    const CpuArguments<T>& args,
    const LevelTable<T>& table,
    TapBlock<T>& block,
    T* products,
    T* partial,
    int64_t channel,
    int64_t channels) {
  const int64_t taps = args.num_levels * args.points;
  const int64_t stride = args.heads * args.head_dim;
  const int64_t column = block.head * args.head_dim + channel;
  read_taps(args, table, block);
  for (int64_t q = 0; q < block.queries; ++q) {
    const int64_t query = block.image * args.queries + block.first_query + q;
    BackwardQuery<T, N, TAPS, VALUE> body{
        args,
        block,
        args.grad_output + query * stride + column,
        block.image * args.tokens * stride + column,
        q * taps,
        partial,
        true};
    for_each_group<N, FULL_REGISTER>(channels, body);
    if constexpr (TAPS) {
      reduce_products<T, N>(partial, products + 4 * q * taps, taps);
    }
  }
  if constexpr (TAPS) {
    T* const grad_weights = block.corner_weights[0]; // no longer needed
    differentiate_taps(block, table, products, grad_weights);
    if (args.reference != nullptr) {
      write_fused_gradients(args, block, grad_weights);
    } else {
      write_gradients(args, block, grad_weights);
    }
  }
}

template <typename T, int N, bool FULL_REGISTER, bool TAPS, bool VALUE>
void backward_items(
    const CpuArguments<T>& args,
    T* scratch,
    int64_t begin,
    int64_t end) {
  const int64_t taps = args.num_levels * args.points;
  const LevelTable<T> table(args, scratch);
  TapBlock<T> block(taps, scratch);
  T* const products = take(scratch, 4 * (kQueryBlock * taps + kMaxLanes));
  T* const partial = scratch;
  const int64_t blocks = (args.queries + kQueryBlock - 1) / kQueryBlock;
  // Who adds to grad_value takes all blocks; the channels may be shared out.
  const int64_t chunks = TAPS ? 1 : value_chunks<T>(args.head_dim);
  const int64_t parts = VALUE ? chunks : blocks;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t part = item % parts;
    const int64_t channel = VALUE ? part * kValueChunkBytes / int64_t{sizeof(T)} : 0;
    const int64_t next = channel + kValueChunkBytes / int64_t{sizeof(T)};
    const bool last = !VALUE || part + 1 == parts;
    const int64_t channels = (last ? args.head_dim : next) - channel;
    for (int64_t b = VALUE ? 0 : part; b < (VALUE ? blocks : part + 1); ++b) {
      place_block(args, block, item / parts, b);
      backward_block<T, N, FULL_REGISTER, TAPS, VALUE>(
          args, table, block, products, partial, channel, channels);
    }
  }
}

// --- choice of the vector width --------------------------------------------

template <typename T>
void forward(
    const CpuArguments<T>& args,
    T* scratch,
    int64_t begin,
    int64_t end) {
  constexpr int W = kLanes<T>;
  if (args.head_dim >= W) {
    return forward_items<T, W, true>(args, scratch, begin, end);
  }
  if constexpr (W > 8) {
    if (args.head_dim >= 8) {
      return forward_items<T, 8, false>(args, scratch, begin, end);
    }
  }
  if constexpr (W > 4) {
    if (args.head_dim >= 4) {
      return forward_items<T, 4, false>(args, scratch, begin, end);
    }
  }
  if constexpr (W > 2) {
    if (args.head_dim >= 2) {
      return forward_items<T, 2, false>(args, scratch, begin, end);
    }
  }
  forward_items<T, 1, false>(args, scratch, begin, end);
}

template <typename T, bool TAPS, bool VALUE>
void backward(
    const CpuArguments<T>& args,
    T* scratch,
    int64_t begin,
    int64_t end) {
  constexpr int W = kLanes<T>;
  if (args.head_dim >= W) {
    return backward_items<T, W, true, TAPS, VALUE>(args, scratch, begin, end);
  }
  if constexpr (W > 8) {
    if (args.head_dim >= 8) {
      return backward_items<T, 8, false, TAPS, VALUE>(args, scratch, begin, end);
    }
  }
  if constexpr (W > 4) {
    if (args.head_dim >= 4) {
      return backward_items<T, 4, false, TAPS, VALUE>(args, scratch, begin, end);
    }
  }
  if constexpr (W > 2) {
    if (args.head_dim >= 2) {
      return backward_items<T, 2, false, TAPS, VALUE>(args, scratch, begin, end);
    }
  }
  backward_items<T, 1, false, TAPS, VALUE>(args, scratch, begin, end);
}

template <typename T>
constexpr CpuFunctions<T> kFunctions = {
    forward<T>,
    backward<T, true, true>,
    backward<T, true, false>,
    backward<T, false, true>,
};

} // namespace
} // namespace VITADAPTER_ISA
} // namespace vitadapter
