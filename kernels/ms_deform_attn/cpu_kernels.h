// What the CPU kernels of every instruction set have in common: their
// arguments and the table through which they are called. No C++ headers: files
// compiled for one instruction set must not define functions that the linker
// could pick for everybody.

#pragma once

#include <stdint.h>

#include "level.h"

namespace vitadapter {

// Queries that share one pass over the taps, so that the taps stay in L1 and
// the rows of grad_output in L2.
constexpr int64_t kQueryBlock = 64;

// Floats in the widest vector register.
constexpr int64_t kMaxLanes = 16;

// All pointers are to contiguous data; T is float or double.
template <typename T>
struct CpuArguments {
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t queries;
  int64_t points;
  int64_t num_levels;
  const Level* levels;

  const T* value; // (batch, tokens, heads, head_dim)
  // (batch, queries, heads, levels, points, 2): locations, or offsets in
  // pixels if there are reference points.
  const T* taps;
  // (batch, queries, heads, levels, points): weights, or logits if there are
  // reference points.
  const T* per_tap;
  const T* reference; // (batch or 1, queries, levels or 1, 2), or null
  int64_t reference_image_stride; // 0 where broadcast
  int64_t reference_query_stride;
  int64_t reference_level_stride; // 0 where broadcast

  T* output; // (batch, queries, heads, head_dim); forward only

  // Backward only.
  const T* grad_output; // as output
  T* grad_value; // all of it is written
  T* grad_taps;
  T* grad_per_tap;
  T* grad_reference; // (batch, heads, queries, levels, 2), or null
};

// Forward: items are (image, head, block of queries).
// Gradients of taps and weights alone: as forward.
// Gradient of value alone: items are (image, head, chunk of channels).
// All gradients: items are (image, head).
// Whoever runs an item is the only one to write its results, so that these do
// not depend on the number of threads.
template <typename T>
using CpuRange = void (*)(
    const CpuArguments<T>& arguments,
    T* scratch,
    int64_t begin,
    int64_t end);

template <typename T>
struct CpuFunctions {
  CpuRange<T> forward;
  CpuRange<T> backward;
  CpuRange<T> backward_taps;
  CpuRange<T> backward_value;
};

struct CpuKernels {
  const char* name;
  CpuFunctions<float> float32;
  CpuFunctions<double> float64;
};

extern const CpuKernels kCpuKernelsBaseline;
#if defined(__x86_64__)
extern const CpuKernels kCpuKernelsAvx2;
extern const CpuKernels kCpuKernelsAvx512;
#endif

// Parts of a head that the gradient of value alone may be shared out in: a
// cache line of channels each, the last one up to two.
constexpr int64_t kValueChunkBytes = 64;

template <typename T>
constexpr int64_t value_chunks(int64_t head_dim) {
  const int64_t chunks = head_dim * int64_t{sizeof(T)} / kValueChunkBytes;
  return chunks > 0 ? chunks : 1;
}

// Whether a head's rows are read so often that they are copied together first. In
// place they lie heads * head_dim apart, and so fall into a part of each cache only.
constexpr bool reads_often(int64_t queries, int64_t taps_per_query, int64_t tokens) {
  return queries * taps_per_query * 4 >= 16 * tokens;
}

// Elements of scratch that one thread needs: for taps, and for copies of a head's
// rows and of their gradients.
template <typename T>
constexpr int64_t cpu_scratch_elements(const CpuArguments<T>& args) {
  const int64_t lanes = kMaxLanes;
  const int64_t taps_per_query = args.num_levels * args.points;
  const int64_t taps = kQueryBlock * taps_per_query + lanes;
  const int64_t tables = lanes * taps_per_query;
  const int64_t copies =
      reads_often(args.queries, taps_per_query, args.tokens) ? 2 : 0;
  return taps * 16 + tables * 5 + (taps_per_query + 4) * lanes +
      copies * args.tokens * args.head_dim;
}

} // namespace vitadapter
