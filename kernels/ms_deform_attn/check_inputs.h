// What the kernels of every device demand of the arguments of the
// deformable-attention operators. What runs without kernels (tracing, the
// PyTorch implementation) has its rules in vitadapter/ops/arguments.py.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "level.h"

namespace vitadapter {

struct Problem {
  int64_t batch;
  int64_t tokens; // at most 2^31 - 1
  int64_t heads;
  int64_t head_dim;
  int64_t queries;
  int64_t points; // per level
  std::vector<Level> levels;
};

// For heads * head_dim and levels * points, which kernels count in 32 bits.
constexpr int64_t kMostPerQuery = int64_t(1) << 30;

// The dtype of coordinates, and of all sums.
inline at::ScalarType coordinate_dtype(const at::Tensor& value) {
  return value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_value_dtype(const char* op, const at::Tensor& value) {
  const auto dtype = value.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf ||
          dtype == at::kBFloat16,
      op, ": value must be float32, float64, float16 or bfloat16, got ", dtype);
}

inline std::vector<Level> check_levels(
    const char* op,
    at::IntArrayRef spatial_shapes,
    int64_t tokens) {
  TORCH_CHECK_VALUE(
      !spatial_shapes.empty() && spatial_shapes.size() % 2 == 0, op,
      ": spatial_shapes must be (h0, w0, h1, w1, ...), got ", spatial_shapes);
  std::vector<Level> levels;
  int64_t covered = 0;
  bool fits = true;
  for (size_t i = 0; i < spatial_shapes.size(); i += 2) {
    const int64_t height = spatial_shapes[i];
    const int64_t width = spatial_shapes[i + 1];
    TORCH_CHECK_VALUE(
        height > 0 && width > 0, op,
        ": heights and widths must be positive, got spatial_shapes ",
        spatial_shapes);
    // Divided, not multiplied: height * width may overflow.
    fits = fits && height <= (tokens - covered) / width;
    if (fits) {
      levels.push_back({height, width, covered});
      covered += height * width;
    }
  }
  TORCH_CHECK_VALUE(
      fits && covered == tokens, op,
      ": value must have one token per cell of spatial_shapes ", spatial_shapes,
      ", got ", tokens, " tokens");
  // Kernels number the tokens of an image in 32 bits.
  constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(
      tokens <= kMaxTokens, op, ": value must have at most ", kMaxTokens,
      " tokens, got ", tokens);
  return levels;
}

inline Problem check_shapes(
    const char* op,
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const char* taps_name, // locations or offsets
    const at::Tensor& taps,
    const char* per_tap_name, // weights or logits
    const at::Tensor& per_tap) {
  TORCH_CHECK_VALUE(
      value.dim() == 4 && value.size(2) > 0 && value.size(3) > 0, op,
      ": value must have shape (batch, tokens, heads, head_dim) with at least "
      "one head and channel, got ",
      value.sizes());
  TORCH_CHECK_VALUE(
      value.size(2) <= kMostPerQuery / value.size(3), op,
      ": value must have at most ", kMostPerQuery,
      " channels in all its heads, got ", value.sizes());
  auto levels = check_levels(op, spatial_shapes, value.size(1));
  const auto num_levels = static_cast<int64_t>(levels.size());
  TORCH_CHECK_VALUE(
      taps.dim() == 6 && taps.size(0) == value.size(0) &&
          taps.size(2) == value.size(2) && taps.size(3) == num_levels &&
          taps.size(4) > 0 && taps.size(5) == 2,
      op, ": ", taps_name, " must have shape (batch=", value.size(0),
      ", queries, heads=", value.size(2), ", levels=", num_levels,
      ", points >= 1, 2), got ", taps.sizes());
  TORCH_CHECK_VALUE(
      taps.size(4) <= kMostPerQuery / num_levels, op, ": ", taps_name,
      " must have at most ", kMostPerQuery, " points in all levels, got ",
      taps.sizes());
  TORCH_CHECK_VALUE(
      per_tap.sizes() == taps.sizes().slice(0, 5), op, ": ", per_tap_name,
      " must have the shape of ", taps_name, " without its last axis, ",
      taps.sizes().slice(0, 5), ", got ", per_tap.sizes());
  return {
      value.size(0),
      value.size(1),
      value.size(2),
      value.size(3),
      taps.size(1),
      taps.size(4),
      std::move(levels)};
}

inline Problem check_inputs(
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& locations,
    const at::Tensor& weights) {
  constexpr const char* op = "ms_deform_attn";
  TORCH_CHECK_VALUE(
      locations.device() == value.device() &&
          weights.device() == value.device(),
      op, ": all tensors must be on one device, got value on ", value.device(),
      ", sampling_locations on ", locations.device(),
      ", attention_weights on ", weights.device());
  check_value_dtype(op, value);
  const auto coordinate = coordinate_dtype(value);
  TORCH_CHECK_TYPE(
      locations.scalar_type() == coordinate &&
          weights.scalar_type() == coordinate,
      op, ": sampling_locations and attention_weights must be ", coordinate,
      " for a value of ", value.scalar_type(), ", got ",
      locations.scalar_type(), " and ", weights.scalar_type());
  return check_shapes(
      op, value, spatial_shapes, "sampling_locations", locations,
      "attention_weights", weights);
}

inline Problem check_fused_inputs(
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& reference_points,
    const at::Tensor& offsets,
    const at::Tensor& logits) {
  constexpr const char* op = "ms_deform_attn_fused";
  TORCH_CHECK_VALUE(
      reference_points.device() == value.device() &&
          offsets.device() == value.device() &&
          logits.device() == value.device(),
      op, ": all tensors must be on one device, got value on ", value.device(),
      ", reference_points on ", reference_points.device(),
      ", sampling_offsets on ", offsets.device(), ", attention_logits on ",
      logits.device());
  check_value_dtype(op, value);
  TORCH_CHECK_TYPE(
      offsets.scalar_type() == value.scalar_type() &&
          logits.scalar_type() == value.scalar_type(),
      op, ": sampling_offsets and attention_logits must have the dtype of "
      "value, ",
      value.scalar_type(), ", got ", offsets.scalar_type(), " and ",
      logits.scalar_type());
  const auto coordinate = coordinate_dtype(value);
  TORCH_CHECK_TYPE(
      reference_points.scalar_type() == coordinate, op,
      ": reference_points must be ", coordinate, " for a value of ",
      value.scalar_type(), ", got ", reference_points.scalar_type());
  Problem problem = check_shapes(
      op, value, spatial_shapes, "sampling_offsets", offsets,
      "attention_logits", logits);
  const auto num_levels = static_cast<int64_t>(problem.levels.size());
  TORCH_CHECK_VALUE(
      reference_points.dim() == 4 &&
          (reference_points.size(0) == 1 ||
           reference_points.size(0) == problem.batch) &&
          reference_points.size(1) == problem.queries &&
          (reference_points.size(2) == 1 ||
           reference_points.size(2) == num_levels) &&
          reference_points.size(3) == 2,
      op, ": reference_points must have shape (1 or batch=", problem.batch,
      ", queries=", problem.queries, ", 1 or levels=", num_levels,
      ", 2), got ", reference_points.sizes());
  return problem;
}

inline void check_grad_output(
    const char* op,
    const at::Tensor& grad_output,
    const at::Tensor& value,
    const Problem& problem) {
  TORCH_CHECK_VALUE(
      grad_output.device() == value.device(), op,
      "_backward: all tensors must be on one device, got grad_output on ",
      grad_output.device(), ", value on ", value.device());
  TORCH_CHECK_TYPE(
      grad_output.scalar_type() == value.scalar_type(), op,
      "_backward: grad_output must have the dtype of value, ",
      value.scalar_type(), ", got ", grad_output.scalar_type());
  const std::vector<int64_t> expected{
      problem.batch, problem.queries, problem.heads * problem.head_dim};
  TORCH_CHECK_VALUE(
      grad_output.sizes() == at::IntArrayRef(expected), op,
      "_backward: grad_output must have shape ", at::IntArrayRef(expected),
      ", got ", grad_output.sizes());
}

} // namespace vitadapter
