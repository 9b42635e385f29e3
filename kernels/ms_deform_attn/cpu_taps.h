// From locations or offsets to what the sampling loops need: four token numbers
// and four weights per tap, for one head and a block of queries.

#pragma once

#include "cpu_kernels.h"
#include "cpu_simd.h"

namespace vitadapter {
namespace VITADAPTER_ISA {
namespace {

template <typename T>
VITADAPTER_INLINE T* take(T*& scratch, int64_t elements) {
  T* const taken = scratch;
  scratch += elements;
  return taken;
}

// Queries whose taps fill whole vectors.
template <typename T>
inline int64_t queries_per_period(int64_t taps_per_query) {
  int64_t queries = kLanes<T>;
  while (queries > 1 && queries / 2 * taps_per_query % kLanes<T> == 0) {
    queries /= 2;
  }
  return queries;
}

// Size and first token of the level of each tap, over as many queries as fill
// whole vectors.
template <typename T>
struct LevelTable {
  int64_t period;
  T* width;
  T* height;
  Int<T>* int_width;
  Int<T>* int_height;
  Int<T>* first_token;

  LevelTable(const CpuArguments<T>& args, T*& scratch) {
    const int64_t taps = args.num_levels * args.points;
    period = queries_per_period<T>(taps) * taps;
    width = take(scratch, period);
    height = take(scratch, period);
    int_width = reinterpret_cast<Int<T>*>(take(scratch, period));
    int_height = reinterpret_cast<Int<T>*>(take(scratch, period));
    first_token = reinterpret_cast<Int<T>*>(take(scratch, period));
    for (int64_t i = 0; i < period; ++i) {
      const Level& level = args.levels[i / args.points % args.num_levels];
      width[i] = static_cast<T>(level.width);
      height[i] = static_cast<T>(level.height);
      int_width[i] = static_cast<Int<T>>(level.width);
      int_height[i] = static_cast<Int<T>>(level.height);
      first_token[i] = static_cast<Int<T>>(level.first_token);
    }
  }
};

// A block of queries of one head. Taps are numbered query by query and padded
// to whole vectors with taps outside every map.
template <typename T>
struct TapBlock {
  int64_t image;
  int64_t head;
  int64_t first_query;
  int64_t queries;
  int64_t taps; // of all queries
  T* pixels; // (x, y): pixel coordinates; in backward then their gradients
  T* weights; // of attention, after softmax
  T* corner_weights[4]; // attention included
  Int<T>* tokens[4]; // the first is -1 if the tap lies outside the map

  TapBlock(int64_t taps_per_query, T*& scratch) {
    const int64_t capacity = kQueryBlock * taps_per_query + kMaxLanes;
    pixels = take(scratch, 2 * capacity);
    weights = take(scratch, capacity);
    for (int c = 0; c < 4; ++c) {
      corner_weights[c] = take(scratch, capacity);
      tokens[c] = reinterpret_cast<Int<T>*>(take(scratch, capacity));
    }
  }
};

// The cell of four pixels around each sampling point.
template <typename T, int N>
struct Cell {
  using V = Vec<T, N>;
  using I = Vec<Int<T>, N>;
  I inside; // touches the map
  I x0, y0; // upper left corner, may be -1
  I has_x0, has_x1, has_y0, has_y1; // is that side of the cell in the map?
  V right, lower; // shares of the right and lower side

  VITADAPTER_INLINE
  Cell(V x, V y, const LevelTable<T>& table, int64_t at) {
    const V width = load<N>(table.width + at);
    const V height = load<N>(table.height + at);
    // NaN fails; huge values must not reach the conversion, which is undefined.
    inside = (x >= T(-1)) & (y >= T(-1)) & (x < width) & (y < height);
    x = inside ? x : V{};
    y = inside ? y : V{};
    x0 = floor(x);
    y0 = floor(y);
    right = x - __builtin_convertvector(x0, V);
    lower = y - __builtin_convertvector(y0, V);
    has_x0 = x0 >= 0;
    has_y0 = y0 >= 0;
    has_x1 = x0 < load<N>(table.int_width + at) - 1;
    has_y1 = y0 < load<N>(table.int_height + at) - 1;
  }

  static VITADAPTER_INLINE I floor(V x) {
    const I truncated = __builtin_convertvector(x, I);
    return truncated + (x < __builtin_convertvector(truncated, V)); // true is -1
  }
};

// Shares of the four sides, zero for a side outside the map.
template <typename T, int N>
struct Shares {
  Vec<T, N> x0, x1, y0, y1;

  VITADAPTER_INLINE explicit Shares(const Cell<T, N>& cell)
      : x0(cell.has_x0 ? 1 - cell.right : Vec<T, N>{}),
        x1(cell.has_x1 ? cell.right : Vec<T, N>{}),
        y0(cell.has_y0 ? 1 - cell.lower : Vec<T, N>{}),
        y1(cell.has_y1 ? cell.lower : Vec<T, N>{}) {}
};

template <typename T>
inline void locate_taps(TapBlock<T>& block, const LevelTable<T>& table) {
  constexpr int N = kLanes<T>;
  using V = Vec<T, N>;
  using I = Vec<Int<T>, N>;
  int64_t at = 0; // in the table
  for (int64_t i = 0; i < block.taps; i += N) {
    V x, y;
    deinterleave<T, N>(
        load<N>(block.pixels + 2 * i), load<N>(block.pixels + 2 * i + N), x, y);
    const Cell<T, N> cell(x, y, table, at);
    const Shares<T, N> share(cell);
    const V weight = load<N>(block.weights + i);
    store<N>(block.corner_weights[0] + i, weight * share.y0 * share.x0);
    store<N>(block.corner_weights[1] + i, weight * share.y0 * share.x1);
    store<N>(block.corner_weights[2] + i, weight * share.y1 * share.x0);
    store<N>(block.corner_weights[3] + i, weight * share.y1 * share.x1);

    // Corners outside the map read their neighbour, with weight zero.
    const I width = load<N>(table.int_width + at);
    const I first = load<N>(table.first_token + at);
    const I left = cell.x0 & cell.has_x0;
    const I upper = first + (cell.y0 & cell.has_y0) * width;
    const I lower = first + (cell.y0 - cell.has_y1) * width;
    const I right = cell.x0 - cell.has_x1;
    store<N>(block.tokens[0] + i, (upper + left) | ~cell.inside);
    store<N>(block.tokens[1] + i, upper + right);
    store<N>(block.tokens[2] + i, lower + left);
    store<N>(block.tokens[3] + i, lower + right);
    at = at + N == table.period ? 0 : at + N;
  }
}

// to[i] = from[i] * scale + shift, alternately for x and y. POINTS is the
// number of points if known at compile time, else 0.
template <typename T, int POINTS>
VITADAPTER_INLINE void affine_pairs(
    const T* from,
    T* to,
    int64_t points,
    T scale_x,
    T scale_y,
    T shift_x,
    T shift_y) {
  if (POINTS % 2 == 0 && POINTS > 0) {
    const Vec<T, 4> scale = {scale_x, scale_y, scale_x, scale_y};
    const Vec<T, 4> shift = {shift_x, shift_y, shift_x, shift_y};
    for (int p = 0; p < 2 * POINTS; p += 4) {
      store<4>(to + p, load<4>(from + p) * scale + shift);
    }
    return;
  }
  for (int64_t p = 0; p < points; ++p) {
    to[2 * p] = from[2 * p] * scale_x + shift_x;
    to[2 * p + 1] = from[2 * p + 1] * scale_y + shift_y;
  }
}

template <typename T, int POINTS>
inline void read_pixels(const CpuArguments<T>& args, TapBlock<T>& block) {
  const int64_t taps = args.num_levels * args.points;
  const int64_t query_stride = args.heads * taps;
  const int64_t first = block.image * args.queries + block.first_query;
  const T* from = args.taps + (first * query_stride + block.head * taps) * 2;
  const T* reference = args.reference + block.image * args.reference_image_stride +
      block.first_query * args.reference_query_stride;
  T* to = block.pixels;
  for (int64_t q = 0; q < block.queries; ++q) {
    for (int64_t l = 0; l < args.num_levels; ++l) {
      const T width = static_cast<T>(args.levels[l].width);
      const T height = static_cast<T>(args.levels[l].height);
      if (args.reference == nullptr) {
        affine_pairs<T, POINTS>(
            from + 2 * l * args.points, to, args.points, width, height,
            T(-0.5), T(-0.5));
      } else {
        const T* centre = reference + l * args.reference_level_stride;
        affine_pairs<T, POINTS>(
            from + 2 * l * args.points, to, args.points, 1, 1,
            centre[0] * width - T(0.5), centre[1] * height - T(0.5));
      }
      to += 2 * args.points;
    }
    from += 2 * query_stride;
    reference += args.reference_query_stride;
  }
}

template <typename T>
VITADAPTER_INLINE T highest(const T* values, int64_t count) {
  T result = values[0];
  int64_t i = 0;
  if (count >= 4) {
    Vec<T, 4> lanes = load<4>(values);
    for (i = 4; i + 4 <= count; i += 4) {
      const Vec<T, 4> next = load<4>(values + i);
      lanes = next > lanes ? next : lanes;
    }
    const T a = lanes[0] > lanes[1] ? lanes[0] : lanes[1];
    const T b = lanes[2] > lanes[3] ? lanes[2] : lanes[3];
    result = a > b ? a : b;
  }
  for (; i < count; ++i) {
    result = values[i] > result ? values[i] : result;
  }
  return result;
}

// sum over i of a[i] * b[i], or of a[i] where b is null.
template <typename T>
VITADAPTER_INLINE T dot(const T* a, const T* b, int64_t count) {
  Vec<T, 4> lanes = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    lanes += b == nullptr ? load<4>(a + i) : load<4>(a + i) * load<4>(b + i);
  }
  T sum = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  for (; i < count; ++i) {
    sum += b == nullptr ? a[i] : a[i] * b[i];
  }
  return sum;
}

// to[i] = from[i] * scale + shift
template <typename T>
VITADAPTER_INLINE void
affine(const T* from, T* to, int64_t count, T scale, T shift) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    store<4>(to + i, load<4>(from + i) * scale + shift);
  }
  for (; i < count; ++i) {
    to[i] = from[i] * scale + shift;
  }
}

// Softmax over the taps of each query, on the way from logits to weights.
template <typename T>
inline void softmax(
    const T* logits,
    int64_t query_stride,
    T* weights,
    int64_t queries,
    int64_t taps) {
  constexpr int N = kLanes<T>;
  for (int64_t q = 0; q < queries; ++q) {
    const T* from = logits + q * query_stride;
    affine(from, weights + q * taps, taps, T(1), -highest(from, taps));
  }
  for (int64_t i = 0; i < queries * taps; i += N) {
    store<N>(weights + i, exp_of_negative<T, N>(load<N>(weights + i)));
  }
  for (int64_t q = 0; q < queries; ++q) {
    T* const own = weights + q * taps;
    affine(own, own, taps, 1 / dot<T>(own, nullptr, taps), T(0));
  }
}

// Fills the block for `head` and the queries from `first_query` on.
template <typename T>
inline void read_taps(
    const CpuArguments<T>& args,
    const LevelTable<T>& table,
    TapBlock<T>& block) {
  const int64_t taps = args.num_levels * args.points;
  block.taps = block.queries * taps;
  if (args.points == 4) {
    read_pixels<T, 4>(args, block);
  } else {
    read_pixels<T, 0>(args, block);
  }
  for (int64_t i = block.taps; i % kLanes<T> != 0; ++i) {
    block.pixels[2 * i] = block.pixels[2 * i + 1] = T(-2);
    block.weights[i] = 0;
  }
  const int64_t query_stride = args.heads * taps;
  const int64_t first = block.image * args.queries + block.first_query;
  const T* per_tap = args.per_tap + first * query_stride + block.head * taps;
  if (args.reference != nullptr) {
    softmax(per_tap, query_stride, block.weights, block.queries, taps);
  } else {
    for (int64_t q = 0; q < block.queries; ++q) {
      memcpy(
          block.weights + q * taps, per_tap + q * query_stride,
          taps * sizeof(T));
    }
  }
  locate_taps(block, table);
}

} // namespace
} // namespace VITADAPTER_ISA
} // namespace vitadapter
