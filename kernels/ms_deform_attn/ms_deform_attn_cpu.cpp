// Multi-scale deformable attention on CPU. Plain loops over contiguous
// channels; deterministic for any number of threads.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "bilinear.h"
#include "check_inputs.h"

namespace vitadapter {
namespace {

// Work items (query and head) below which a thread is not worth waking.
constexpr int64_t kForwardGrain = 64;

// sum += scale * row
template <typename scalar_t, typename acc_t>
inline void add_scaled(
    acc_t* C10_RESTRICT sum,
    const scalar_t* C10_RESTRICT row,
    acc_t scale,
    int64_t channels) {
  for (int64_t d = 0; d < channels; ++d) {
    sum[d] += scale * static_cast<acc_t>(row[d]);
  }
}

// Several partial sums, since the compiler may not reorder a single one.
template <typename scalar_t, typename acc_t>
inline acc_t dot(
    const acc_t* C10_RESTRICT a,
    const scalar_t* C10_RESTRICT b,
    int64_t channels) {
  constexpr int64_t kLanes = 8;
  acc_t lanes[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= channels; d += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += a[d + lane] * static_cast<acc_t>(b[d + lane]);
    }
  }
  acc_t sum = 0;
  for (const acc_t lane : lanes) {
    sum += lane;
  }
  for (; d < channels; ++d) {
    sum += a[d] * static_cast<acc_t>(b[d]);
  }
  return sum;
}

template <typename scalar_t, typename acc_t>
void forward_items(
    const Problem& problem,
    const scalar_t* value,
    const acc_t* locations,
    const acc_t* weights,
    scalar_t* output,
    int64_t begin,
    int64_t end) {
  const int64_t channels = problem.head_dim;
  const int64_t token_stride = problem.heads * channels;
  const int64_t points = problem.points;
  const int64_t taps = static_cast<int64_t>(problem.levels.size()) * points;
  std::vector<acc_t> sum(channels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t head = item % problem.heads;
    const int64_t image = item / (problem.heads * problem.queries);
    const scalar_t* head_value =
        value + image * problem.tokens * token_stride + head * channels;
    std::fill(sum.begin(), sum.end(), acc_t(0));
    for (int64_t tap = 0; tap < taps; ++tap) {
      const Level& level = problem.levels[tap / points];
      const scalar_t* map = head_value + level.first_token * token_stride;
      const acc_t* location = locations + (item * taps + tap) * 2;
      const acc_t weight = weights[item * taps + tap];
      for_each_corner(
          location[0], location[1], level.height, level.width,
          [&](const Corner<acc_t>& corner) {
            add_scaled(
                sum.data(), map + corner.pixel * token_stride,
                weight * corner.weight, channels);
          });
    }
    for (int64_t d = 0; d < channels; ++d) {
      output[item * channels + d] = static_cast<scalar_t>(sum[d]);
    }
  }
}

// All gradients that belong to one head of one image; nobody else writes there.
template <typename scalar_t, typename acc_t>
void backward_head(
    const Problem& problem,
    const scalar_t* grad_output,
    const scalar_t* value,
    const acc_t* locations,
    const acc_t* weights,
    acc_t* grad_value,
    acc_t* grad_locations,
    acc_t* grad_weights,
    int64_t image,
    int64_t head) {
  const int64_t channels = problem.head_dim;
  const int64_t token_stride = problem.heads * channels;
  const int64_t points = problem.points;
  const int64_t taps = static_cast<int64_t>(problem.levels.size()) * points;
  const int64_t head_offset =
      image * problem.tokens * token_stride + head * channels;
  std::vector<acc_t> grad(channels);
  for (int64_t query = 0; query < problem.queries; ++query) {
    const int64_t item =
        (image * problem.queries + query) * problem.heads + head;
    std::copy_n(grad_output + item * channels, channels, grad.begin());
    for (int64_t tap = 0; tap < taps; ++tap) {
      const Level& level = problem.levels[tap / points];
      const int64_t map = head_offset + level.first_token * token_stride;
      const int64_t index = item * taps + tap;
      const acc_t weight = weights[index];
      acc_t sample = 0; // the sampled value and its slopes, along grad
      acc_t slope_x = 0;
      acc_t slope_y = 0;
      for_each_corner(
          locations[2 * index], locations[2 * index + 1], level.height,
          level.width, [&](const Corner<acc_t>& corner) {
            const int64_t row = map + corner.pixel * token_stride;
            const acc_t along = dot(grad.data(), value + row, channels);
            sample += corner.weight * along;
            slope_x += corner.weight_dx * along;
            slope_y += corner.weight_dy * along;
            add_scaled(
                grad_value + row, grad.data(), weight * corner.weight,
                channels);
          });
      grad_weights[index] = sample;
      grad_locations[2 * index] =
          weight * slope_x * static_cast<acc_t>(level.width);
      grad_locations[2 * index + 1] =
          weight * slope_y * static_cast<acc_t>(level.height);
    }
  }
}

at::Tensor forward_cpu(
    const at::Tensor& value_,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Problem problem =
      check_inputs(value_, spatial_shapes, sampling_locations, attention_weights);
  const auto value = value_.contiguous();
  const auto locations = sampling_locations.contiguous();
  const auto weights = attention_weights.contiguous();
  auto output = at::empty(
      {problem.batch, problem.queries, problem.heads * problem.head_dim},
      value.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn", [&] {
        using acc_t = at::opmath_type<scalar_t>;
        const auto* value_data = value.const_data_ptr<scalar_t>();
        const auto* locations_data = locations.const_data_ptr<acc_t>();
        const auto* weights_data = weights.const_data_ptr<acc_t>();
        auto* output_data = output.mutable_data_ptr<scalar_t>();
        at::parallel_for(
            0, problem.batch * problem.queries * problem.heads, kForwardGrain,
            [&](int64_t begin, int64_t end) {
              forward_items<scalar_t, acc_t>(
                  problem, value_data, locations_data, weights_data,
                  output_data, begin, end);
            });
      });
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor& grad_output_,
    const at::Tensor& value_,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Problem problem =
      check_inputs(value_, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output("ms_deform_attn", grad_output_, value_, problem);
  const auto grad_output = grad_output_.contiguous();
  const auto value = value_.contiguous();
  const auto locations = sampling_locations.contiguous();
  const auto weights = attention_weights.contiguous();
  // Summed in the type of the locations: half types would lose small terms.
  auto grad_value = at::zeros(value.sizes(), locations.options());
  auto grad_locations = at::empty(locations.sizes(), locations.options());
  auto grad_weights = at::empty(weights.sizes(), weights.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn_backward",
      [&] {
        using acc_t = at::opmath_type<scalar_t>;
        const auto* grad_data = grad_output.const_data_ptr<scalar_t>();
        const auto* value_data = value.const_data_ptr<scalar_t>();
        const auto* locations_data = locations.const_data_ptr<acc_t>();
        const auto* weights_data = weights.const_data_ptr<acc_t>();
        auto* grad_value_data = grad_value.mutable_data_ptr<acc_t>();
        auto* grad_locations_data = grad_locations.mutable_data_ptr<acc_t>();
        auto* grad_weights_data = grad_weights.mutable_data_ptr<acc_t>();
        at::parallel_for(
            0, problem.batch * problem.heads, 1,
            [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) {
                backward_head<scalar_t, acc_t>(
                    problem, grad_data, value_data, locations_data,
                    weights_data, grad_value_data, grad_locations_data,
                    grad_weights_data, i / problem.heads, i % problem.heads);
              }
            });
      });
  return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

} // namespace

TORCH_LIBRARY_IMPL(vitadapter, CPU, m) {
  m.impl("ms_deform_attn", &forward_cpu);
  m.impl("ms_deform_attn_backward", &backward_cpu);
}

} // namespace vitadapter
