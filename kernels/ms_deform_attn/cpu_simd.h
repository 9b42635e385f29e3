// Vectors of N lanes in the dialect that GCC and Clang share. Included once per
// instruction set, after the target pragma; see cpu_kernels.h for why there are
// only C headers here.

#pragma once

#include <stdint.h>
#include <string.h>

// Vectors wider than a register are passed in memory, differently from one
// instruction set to the next; here every such function is inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

#define VITADAPTER_INLINE inline __attribute__((always_inline))

namespace vitadapter {
namespace VITADAPTER_ISA {
namespace {

template <typename T>
struct Bits;
template <>
struct Bits<float> {
  using type = int32_t;
};
template <>
struct Bits<double> {
  using type = int64_t;
};

// Integers of the width of T.
template <typename T>
using Int = typename Bits<T>::type;

template <typename T, int N>
struct VecOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
  typedef T memory
      __attribute__((vector_size(N * sizeof(T)), aligned(sizeof(T)), may_alias));
};

template <typename T, int N>
using Vec = typename VecOf<T, N>::type;

// Lanes of a full register.
template <typename T>
constexpr int kLanes = VITADAPTER_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <int N, typename T>
VITADAPTER_INLINE Vec<T, N> load(const T* from) {
  return *reinterpret_cast<const typename VecOf<T, N>::memory*>(from);
}

template <int N, typename T>
VITADAPTER_INLINE void store(T* to, Vec<T, N> v) {
  *reinterpret_cast<typename VecOf<T, N>::memory*>(to) = v;
}

template <typename T, int N>
VITADAPTER_INLINE Vec<T, N> broadcast(T x) {
  return x - Vec<T, N>{};
}

// Lane i of the result is lane mask[i] of a and b laid side by side.
template <typename T, int N>
VITADAPTER_INLINE Vec<T, N> permute(
    Vec<T, N> a,
    Vec<T, N> b,
    Vec<Int<T>, N> mask) {
#if defined(__clang__)
  Vec<T, N> result;
  for (int i = 0; i < N; ++i) {
    result[i] = mask[i] < N ? a[mask[i]] : b[mask[i] - N];
  }
  return result;
#else
  return __builtin_shuffle(a, b, mask);
#endif
}

// (a0 b0 a1 b1 ...) in two vectors to (a0 a1 ...) and (b0 b1 ...).
template <typename T, int N>
VITADAPTER_INLINE void deinterleave(
    Vec<T, N> low,
    Vec<T, N> high,
    Vec<T, N>& even,
    Vec<T, N>& odd) {
  Vec<Int<T>, N> mask;
  for (int i = 0; i < N; ++i) {
    mask[i] = 2 * i;
  }
  even = permute<T, N>(low, high, mask);
  odd = permute<T, N>(low, high, mask + 1);
}

template <typename T, int N>
VITADAPTER_INLINE void interleave(
    Vec<T, N> even,
    Vec<T, N> odd,
    Vec<T, N>& low,
    Vec<T, N>& high) {
  Vec<Int<T>, N> mask;
  for (int i = 0; i < N; ++i) {
    mask[i] = i / 2 + (i % 2) * N;
  }
  low = permute<T, N>(even, odd, mask);
  high = permute<T, N>(even, odd, mask + N / 2);
}

// Both vectors hold N / SPAN groups of SPAN lanes whose sums are wanted.
// Returns the groups of a, then those of b, folded to half the span.
template <typename T, int N, int SPAN>
VITADAPTER_INLINE Vec<T, N> fold(Vec<T, N> a, Vec<T, N> b) {
  Vec<Int<T>, N> mask;
  for (int i = 0; i < N; ++i) {
    mask[i] = i / (SPAN / 2) * SPAN + i % (SPAN / 2);
  }
  return permute<T, N>(a, b, mask) + permute<T, N>(a, b, mask + SPAN / 2);
}

// Taylor's series of exp().
constexpr double kInverseFactorials[] = {
    1.0,
    1.0,
    1.0 / 2,
    1.0 / 6,
    1.0 / 24,
    1.0 / 120,
    1.0 / 720,
    1.0 / 5040,
    1.0 / 40320,
    1.0 / 362880,
    1.0 / 3628800,
    1.0 / 39916800,
    1.0 / 479001600,
    1.0 / 6227020800,
};

template <typename T>
struct Exp;
template <>
struct Exp<float> {
  static constexpr int degree = 7;
  static constexpr float lowest = -87.0f; // exp() below is not a normal number
  static constexpr float to_integer = 12582912.0f; // 1.5 * 2^23
  static constexpr float ln2_high = 0.693359375f;
  static constexpr float ln2_low = -2.12194440e-4f;
  static constexpr int mantissa = 23;
  static constexpr int bias = 127;
};
template <>
struct Exp<double> {
  static constexpr int degree = 13;
  static constexpr double lowest = -708.0;
  static constexpr double to_integer = 6755399441055744.0; // 1.5 * 2^52
  static constexpr double ln2_high = 6.93145751953125e-1;
  static constexpr double ln2_low = 1.42860682030941723212e-6;
  static constexpr int mantissa = 52;
  static constexpr int bias = 1023;
};

// exp(x) for x <= 0 to about one unit in the last place; NaN stays NaN.
template <typename T, int N>
VITADAPTER_INLINE Vec<T, N> exp_of_negative(Vec<T, N> x) {
  using E = Exp<T>;
  using V = Vec<T, N>;
  using I = Vec<Int<T>, N>;
  const I vanishes = x < E::lowest;
  x = vanishes ? V{} : x;
  // Adding leaves the nearest integer in the low bits of the mantissa.
  const V shifted = x * T(1.44269504088896340736) + E::to_integer;
  const V n = shifted - E::to_integer;
  const V r = (x - n * E::ln2_high) - n * E::ln2_low;
  V sum = broadcast<T, N>(T(kInverseFactorials[E::degree]));
  for (int k = E::degree - 1; k >= 0; --k) {
    sum = sum * r + T(kInverseFactorials[k]);
  }
  I bits;
  memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + E::bias) << E::mantissa;
  V power;
  memcpy(&power, &bits, sizeof(power));
  return vanishes ? V{} : sum * power;
}

} // namespace
} // namespace VITADAPTER_ISA
} // namespace vitadapter
