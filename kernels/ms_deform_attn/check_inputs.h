// The rules that the arguments of ms_deform_attn keep on every device. The same
// rules, for devices without a kernel, are in
// vitadapter/layers/ms_deform_attn_checks.py.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace vitadapter {

// One feature map inside the token axis of value.
struct Level {
  int64_t height;
  int64_t width;
  int64_t first_token;
};

struct Problem {
  int64_t batch;
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t queries;
  int64_t points; // per level
  std::vector<Level> levels;
};

inline void check_devices_and_dtypes(
    const at::Tensor& value,
    const at::Tensor& locations,
    const at::Tensor& weights) {
  TORCH_CHECK_VALUE(
      locations.device() == value.device() &&
          weights.device() == value.device(),
      "ms_deform_attn: all tensors must be on one device, got value on ",
      value.device(), ", sampling_locations on ", locations.device(),
      ", attention_weights on ", weights.device());
  const auto dtype = value.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf ||
          dtype == at::kBFloat16,
      "ms_deform_attn: value must be float32, float64, float16 or bfloat16, "
      "got ",
      dtype);
  const auto coordinate = dtype == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_TYPE(
      locations.scalar_type() == coordinate &&
          weights.scalar_type() == coordinate,
      "ms_deform_attn: sampling_locations and attention_weights must be ",
      coordinate, " for a value of ", dtype, ", got ", locations.scalar_type(),
      " and ", weights.scalar_type());
}

inline std::vector<Level> check_levels(
    at::IntArrayRef spatial_shapes,
    int64_t tokens) {
  TORCH_CHECK_VALUE(
      !spatial_shapes.empty() && spatial_shapes.size() % 2 == 0,
      "ms_deform_attn: spatial_shapes must be (h0, w0, h1, w1, ...), got ",
      spatial_shapes);
  std::vector<Level> levels;
  int64_t covered = 0;
  bool fits = true;
  for (size_t i = 0; i < spatial_shapes.size(); i += 2) {
    const int64_t height = spatial_shapes[i];
    const int64_t width = spatial_shapes[i + 1];
    TORCH_CHECK_VALUE(
        height > 0 && width > 0,
        "ms_deform_attn: heights and widths must be positive, got "
        "spatial_shapes ",
        spatial_shapes);
    // Divided, not multiplied: height * width may overflow.
    fits = fits && height <= (tokens - covered) / width;
    if (fits) {
      levels.push_back({height, width, covered});
      covered += height * width;
    }
  }
  TORCH_CHECK_VALUE(
      fits && covered == tokens,
      "ms_deform_attn: value must have one token per cell of spatial_shapes ",
      spatial_shapes, ", got ", tokens, " tokens");
  return levels;
}

inline Problem check_inputs(
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& locations,
    const at::Tensor& weights) {
  check_devices_and_dtypes(value, locations, weights);
  TORCH_CHECK_VALUE(
      value.dim() == 4 && value.size(2) > 0 && value.size(3) > 0,
      "ms_deform_attn: value must have shape (batch, tokens, heads, head_dim) "
      "with at least one head and channel, got ",
      value.sizes());
  auto levels = check_levels(spatial_shapes, value.size(1));
  const auto num_levels = static_cast<int64_t>(levels.size());
  TORCH_CHECK_VALUE(
      locations.dim() == 6 && locations.size(0) == value.size(0) &&
          locations.size(2) == value.size(2) &&
          locations.size(3) == num_levels && locations.size(4) > 0 &&
          locations.size(5) == 2,
      "ms_deform_attn: sampling_locations must have shape (batch=",
      value.size(0), ", queries, heads=", value.size(2), ", levels=",
      num_levels, ", points >= 1, 2), got ", locations.sizes());
  TORCH_CHECK_VALUE(
      weights.sizes() == locations.sizes().slice(0, 5),
      "ms_deform_attn: attention_weights must have the shape of "
      "sampling_locations without its last axis, ",
      locations.sizes().slice(0, 5), ", got ", weights.sizes());
  return {
      value.size(0),
      value.size(1),
      value.size(2),
      value.size(3),
      locations.size(1),
      locations.size(4),
      std::move(levels)};
}

inline void check_grad_output(
    const at::Tensor& grad_output,
    const at::Tensor& value,
    const Problem& problem) {
  TORCH_CHECK_VALUE(
      grad_output.device() == value.device(),
      "ms_deform_attn_backward: all tensors must be on one device, got "
      "grad_output on ",
      grad_output.device(), ", value on ", value.device());
  TORCH_CHECK_TYPE(
      grad_output.scalar_type() == value.scalar_type(),
      "ms_deform_attn_backward: grad_output must have the dtype of value, ",
      value.scalar_type(), ", got ", grad_output.scalar_type());
  const std::vector<int64_t> expected{
      problem.batch, problem.queries, problem.heads * problem.head_dim};
  TORCH_CHECK_VALUE(
      grad_output.sizes() == at::IntArrayRef(expected),
      "ms_deform_attn_backward: grad_output must have shape ",
      at::IntArrayRef(expected), ", got ", grad_output.sizes());
}

} // namespace vitadapter
