// Forward: sums of rows over the taps of each query.

#pragma once

#include "cpu_channels.h"
#include "cpu_kernels.h"
#include "cpu_simd.h"
#include "cpu_taps.h"

namespace vitadapter {
namespace VITADAPTER_ISA {
namespace {

template <typename T, int N>
struct ForwardBlock {
  const CpuArguments<T>& args;
  const TapBlock<T>& block;
  HeadRows<const T> head;

  template <int NV>
  void run(int64_t channel, int64_t) {
    using V = Vec<T, N>;
    // Several sums per vector, since one addition takes several cycles.
    constexpr int kChains = NV >= 8 ? 1 : NV >= 4 ? 2 : 4;
    const int64_t taps = args.num_levels * args.points;
    const T* const value = head.rows + channel;
    const HeadRows<T> results = query_rows(args, args.output, block);
    T* output = results.rows + channel;
    int64_t t = 0;
    for (int64_t q = 0; q < block.queries; ++q, output += results.stride) {
      V sums[kChains][NV] = {};
      for (const int64_t end = t + taps; t < end; ++t) {
        prefetch_rows<NV * N>(block, t + kForwardDistance, value, head.stride);
        if (block.tokens[0][t] < 0) {
          continue;
        }
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
          const T* const row = value + block.tokens[c][t] * head.stride;
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

template <typename T>
struct ForwardItems {
  const CpuArguments<T>& args;
  T* scratch;
  int64_t begin;
  int64_t end;

  template <int N, bool FULL_REGISTER>
  void run() const {
    const int64_t taps = args.num_levels * args.points;
    T* free = scratch;
    const bool often = reads_often(args.queries, taps, args.tokens);
    T* const packed = take(free, often ? args.tokens * args.head_dim : 0);
    const LevelTable<T> table(args, free);
    TapBlock<T> block(taps, free);
    const int64_t blocks = (args.queries + kQueryBlock - 1) / kQueryBlock;
    for (int64_t item = begin; item < end;) {
      const int64_t image_and_head = item / blocks;
      const int64_t next_head = (image_and_head + 1) * blocks;
      const int64_t stop = next_head < end ? next_head : end;
      HeadRows<const T> head = rows_in_place(args, args.value, image_and_head);
      // A thread may have few of the blocks of this head.
      if (often && reads_often((stop - item) * kQueryBlock, taps, args.tokens)) {
        pack_rows(args, head, packed);
        head = {packed, args.head_dim};
      }
      for (; item < stop; ++item) {
        place_block(args, block, image_and_head, item % blocks);
        read_taps(args, table, block);
        ForwardBlock<T, N> body{args, block, head};
        for_each_group<N, FULL_REGISTER>(args.head_dim, body);
      }
    }
  }
};

template <typename T>
void forward(
    const CpuArguments<T>& args,
    T* scratch,
    int64_t begin,
    int64_t end) {
  with_width<T>(args.head_dim, ForwardItems<T>{args, scratch, begin, end});
}

} // namespace
} // namespace VITADAPTER_ISA
} // namespace vitadapter
