// Backward, after the loops over rows: gradients of locations and weights, or of
// offsets, logits and reference points.

#pragma once

#include "cpu_kernels.h"
#include "cpu_simd.h"
#include "cpu_taps.h"

namespace vitadapter {
namespace VITADAPTER_ISA {
namespace {

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
    // A tap outside counts as zero whatever its weight, NaN included.
    const V weight = cell.inside ? load<N>(block.weights + i) : zero;
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

} // namespace
} // namespace VITADAPTER_ISA
} // namespace vitadapter
