// What the kernels take, as pointers.

#pragma once

#include <cstdint>
#include <type_traits>

namespace vitadapter::cuda {

// Coordinates and sums: float64 for float64, else float32.
template <typename scalar_t>
using acc_of = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// One feature map inside the token axis.
struct LevelSize {
  int64_t first_token;
  int32_t height;
  int32_t width;
};

// Arguments of ms_deform_attn: (images, queries, heads, levels, points, 2) and
// (images, queries, heads, levels, points).
template <typename Scalar>
struct GivenTaps {
  using scalar_t = Scalar;
  using acc_t = acc_of<Scalar>;
  static constexpr bool kFused = false;
  const acc_t* locations;
  const acc_t* weights;
};

// Arguments of ms_deform_attn_fused: reference points (1 or images, queries, 1
// or levels, 2), offsets and logits shaped as locations and weights.
template <typename Scalar>
struct RawTaps {
  using scalar_t = Scalar;
  using acc_t = acc_of<Scalar>;
  static constexpr bool kFused = true;
  const acc_t* references;
  const scalar_t* offsets;
  const scalar_t* logits;
  int64_t reference_images;
  int32_t reference_levels;
};

// Gradients of ms_deform_attn's locations and weights.
template <typename Scalar>
struct GivenTapGradients {
  using acc_t = acc_of<Scalar>;
  acc_t* locations;
  acc_t* weights;
};

// Gradients of ms_deform_attn_fused's offsets and logits. Those of the offsets
// are not rounded to a half type yet: the reference points need their sums.
template <typename Scalar>
struct RawTapGradients {
  using acc_t = acc_of<Scalar>;
  acc_t* offsets;
  Scalar* logits;
};

template <typename Scalar, bool kFused>
using GradientsOf = std::
    conditional_t<kFused, RawTapGradients<Scalar>, GivenTapGradients<Scalar>>;

} // namespace vitadapter::cuda
