// Backward: products of grad_output with rows, and the gradient of rows.

#pragma once

#include "cpu_channels.h"
#include "cpu_kernels.h"
#include "cpu_simd.h"
#include "cpu_tap_gradients.h"
#include "cpu_taps.h"

namespace vitadapter {
namespace VITADAPTER_ISA {
namespace {

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
  const T* value; // of this head, from the first channel on
  T* grad_value; // as value
  int64_t stride; // from token to token in both
  int64_t first_tap;
  T* partial; // (taps, kStored)
  bool far; // rows are asked for ahead of time
  bool first_group;

  template <int NV>
  void run(int64_t channel, int64_t overlap) {
    V grad[NV];
    for (int v = 0; v < NV; ++v) {
      grad[v] = load<N>(grad_output + channel + v * N);
    }
    if constexpr (NV == 1) {
      V kept;
      for (int i = 0; i < N; ++i) {
        kept[i] = i < overlap ? T(0) : grad[0][i];
      }
      grad[0] = kept;
    }
    const int64_t taps = args.num_levels * args.points;
    if (far) {
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t later = first_tap + t + kBackwardDistance;
        if constexpr (TAPS) {
          prefetch_rows<NV * N>(block, later, value + channel, stride);
        }
        if constexpr (VALUE) {
          prefetch_rows<NV * N>(block, later, grad_value + channel, stride);
        }
      }
    }
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t at = first_tap + t;
      if (block.tokens[0][at] < 0) {
        continue;
      }
      // All read before anything is stored, which might alias for the compiler.
      int64_t rows[4];
      T weights[4];
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        rows[c] = block.tokens[c][at] * stride + channel;
        weights[c] = block.corner_weights[c][at];
      }
      if constexpr (TAPS) {
        add_products<NV>(grad, rows, partial + t * kStored);
      }
      if constexpr (VALUE) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
          T* const to = grad_value + rows[c];
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) {
            store<N>(to + v * N, load<N>(to + v * N) + grad[v] * weights[c]);
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
      products[c] = load<N>(value + rows[c]) * grad[0];
#pragma GCC unroll 8
      for (int v = 1; v < NV; ++v) {
        products[c] += load<N>(value + rows[c] + v * N) * grad[v];
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

// Queries between asking for a row of grad_output and using it.
constexpr int64_t kGradDistance = 8;

// Where one owner works: some channels of one head of one image.
template <typename T>
struct Strip {
  int64_t first_channel; // of the head
  int64_t channels;
  const T* value;
  T* grad_value;
  int64_t stride; // from token to token in both
  bool packed; // copied together, hence in the nearer caches
};

// One block of queries of one head, over all its channels where TAPS.
template <typename T, int N, bool FULL_REGISTER, bool TAPS, bool VALUE>
VITADAPTER_INLINE void backward_block(
    const CpuArguments<T>& args,
    const LevelTable<T>& table,
    const Strip<T>& strip,
    TapBlock<T>& block,
    T* products,
    T* partial) {
  const int64_t taps = args.num_levels * args.points;
  read_taps(args, table, block);
  const HeadRows<const T> grad_output = query_rows(args, args.grad_output, block);
  for (int64_t q = 0; q < block.queries; ++q) {
    const T* const grad = grad_output.rows + q * grad_output.stride + strip.first_channel;
    if (block.first_query + q + kGradDistance < args.queries) {
      for (int64_t i = 0; i < strip.channels; i += 64 / int64_t{sizeof(T)}) {
        __builtin_prefetch(grad + kGradDistance * grad_output.stride + i);
      }
    }
    BackwardQuery<T, N, TAPS, VALUE> body{
        args,
        block,
        grad,
        strip.value,
        strip.grad_value,
        strip.stride,
        q * taps,
        partial,
        !strip.packed,
        true};
    for_each_group<N, FULL_REGISTER>(strip.channels, body);
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

template <typename T, bool TAPS, bool VALUE>
struct BackwardItems {
  const CpuArguments<T>& args;
  T* scratch;
  int64_t begin;
  int64_t end;

  template <int N, bool FULL_REGISTER>
  void run() const {
    const int64_t taps = args.num_levels * args.points;
    T* free = scratch;
    const bool often = reads_often(args.queries, taps, args.tokens);
    T* const packed = take(free, often ? 2 * args.tokens * args.head_dim : 0);
    const LevelTable<T> table(args, free);
    TapBlock<T> block(taps, free);
    T* const products = take(free, 4 * (kQueryBlock * taps + kMaxLanes));
    T* const partial = free;
    const int64_t blocks = (args.queries + kQueryBlock - 1) / kQueryBlock;
    // Who adds to grad_value takes all blocks; the channels may be shared out.
    const int64_t chunks = TAPS ? 1 : value_chunks<T>(args.head_dim);
    const int64_t parts = VALUE ? chunks : blocks;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item % parts;
      const Strip<T> strip = open_strip(item / parts, VALUE ? part : 0, chunks, packed);
      for (int64_t b = VALUE ? 0 : part; b < (VALUE ? blocks : part + 1); ++b) {
        place_block(args, block, item / parts, b);
        backward_block<T, N, FULL_REGISTER, TAPS, VALUE>(
            args, table, strip, block, products, partial);
      }
      close_strip(item / parts, strip);
    }
  }

  // Rows that are visited often are copied together, and so are their sums.
  Strip<T> open_strip(
      int64_t image_and_head,
      int64_t chunk,
      int64_t chunks,
      T* packed) const {
    constexpr int64_t kChunk = kValueChunkBytes / int64_t{sizeof(T)};
    const int64_t channel = chunk * kChunk;
    const int64_t channels =
        chunk + 1 == chunks ? args.head_dim - channel : kChunk;
    const HeadRows<const T> value = rows_in_place(args, args.value, image_and_head);
    if (!VALUE) {
      return {channel, channels, value.rows, nullptr, value.stride, false};
    }
    if (!reads_often(args.queries, args.num_levels * args.points, args.tokens)) {
      const HeadRows<T> grad = rows_in_place(args, args.grad_value, image_and_head);
      for (int64_t token = 0; token < args.tokens; ++token) {
        memset(grad.rows + channel + token * grad.stride, 0, channels * sizeof(T));
      }
      return {channel, channels, value.rows, grad.rows + channel, value.stride, false};
    }
    T* const sums = packed + args.tokens * args.head_dim;
    memset(sums, 0, args.tokens * channels * sizeof(T));
    if (TAPS) {
      pack_rows(args, value, packed);
    }
    return {channel, channels, packed, sums, channels, true};
  }

  void close_strip(int64_t image_and_head, const Strip<T>& strip) const {
    if (!VALUE || !strip.packed) {
      return;
    }
    const HeadRows<T> grad = rows_in_place(args, args.grad_value, image_and_head);
    for (int64_t token = 0; token < args.tokens; ++token) {
      memcpy(
          grad.rows + strip.first_channel + token * grad.stride,
          strip.grad_value + token * strip.stride, strip.channels * sizeof(T));
    }
  }
};

template <typename T, bool TAPS, bool VALUE>
void backward(
    const CpuArguments<T>& args,
    T* scratch,
    int64_t begin,
    int64_t end) {
  with_width<T>(
      args.head_dim, BackwardItems<T, TAPS, VALUE>{args, scratch, begin, end});
}

} // namespace
} // namespace VITADAPTER_ISA
} // namespace vitadapter
