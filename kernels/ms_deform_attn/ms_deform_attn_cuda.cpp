// Multi-scale deformable attention on CUDA: checks and memory. The kernels are
// in *_cuda.cuh, their launches in dispatch_cuda.cuh.

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "check_inputs.h"
#include "launch_cuda.h"

namespace vitadapter {
namespace {

// Vectors of 16 bytes must begin at multiples of 16.
at::Tensor aligned(const at::Tensor& tensor) {
  const auto dense = tensor.contiguous();
  const auto address = reinterpret_cast<uintptr_t>(dense.const_data_ptr());
  return address % 16 == 0 ? dense : dense.clone();
}

// What the launches are told of the sizes, with the memory that it points to.
struct LaunchSizes {
  cuda::Dimensions dimensions;
  at::Tensor device_levels; // undefined unless the problem is wide

  LaunchSizes(
      const Problem& problem,
      at::IntArrayRef spatial_shapes,
      const at::Tensor& value)
      : dimensions{
            problem.batch,
            problem.tokens,
            problem.heads,
            problem.head_dim,
            problem.queries,
            static_cast<int64_t>(problem.levels.size()),
            problem.points,
            spatial_shapes.data(),
            nullptr} {
    if (!cuda::is_wide(dimensions)) {
      return;
    }
    const auto bytes =
        static_cast<int64_t>(problem.levels.size() * sizeof(cuda::LevelSize));
    device_levels = at::empty({bytes}, value.options().dtype(at::kByte));
    auto* levels =
        reinterpret_cast<cuda::LevelSize*>(device_levels.mutable_data_ptr());
    C10_CUDA_CHECK(cuda::launch_write_levels(
        dimensions, levels, c10::cuda::getCurrentCUDAStream().stream()));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    dimensions.device_levels = levels;
  }
};

bool is_empty(const Problem& problem) {
  return problem.batch == 0 || problem.queries == 0;
}

// Sums of half types are float32; they are cast at the end.
at::TensorOptions sums_like(const at::Tensor& value) {
  return value.options().dtype(at::toOpMathType(value.scalar_type()));
}

template <typename scalar_t>
cuda::GivenTaps<scalar_t> given_taps(
    const at::Tensor& locations,
    const at::Tensor& weights) {
  using acc_t = cuda::acc_of<scalar_t>;
  return {
      locations.const_data_ptr<acc_t>(), weights.const_data_ptr<acc_t>()};
}

template <typename scalar_t>
cuda::RawTaps<scalar_t> raw_taps(
    const at::Tensor& references,
    const at::Tensor& offsets,
    const at::Tensor& logits) {
  return {
      references.const_data_ptr<cuda::acc_of<scalar_t>>(),
      offsets.const_data_ptr<scalar_t>(),
      logits.const_data_ptr<scalar_t>(),
      references.size(0),
      static_cast<int32_t>(references.size(2))};
}

template <typename MakeTaps>
at::Tensor forward(
    const Problem& problem,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& value,
    const MakeTaps& make_taps) {
  auto output = at::empty(
      {problem.batch, problem.queries, problem.heads * problem.head_dim},
      value.options());
  if (is_empty(problem)) {
    return output;
  }
  const LaunchSizes sizes(problem, spatial_shapes, value);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn", [&] {
        C10_CUDA_CHECK(cuda::launch_forward(
            sizes.dimensions, make_taps(scalar_t()),
            value.const_data_ptr<scalar_t>(),
            output.mutable_data_ptr<scalar_t>(),
            c10::cuda::getCurrentCUDAStream().stream()));
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return output;
}

at::Tensor forward_cuda(
    const at::Tensor& value_,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Problem problem =
      check_inputs(value_, spatial_shapes, sampling_locations, attention_weights);
  const c10::cuda::CUDAGuard guard(value_.device());
  const auto locations = aligned(sampling_locations);
  const auto weights = aligned(attention_weights);
  return forward(problem, spatial_shapes, aligned(value_), [&](auto scalar) {
    return given_taps<decltype(scalar)>(locations, weights);
  });
}

at::Tensor fused_forward_cuda(
    const at::Tensor& value_,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& reference_points,
    const at::Tensor& sampling_offsets,
    const at::Tensor& attention_logits) {
  const Problem problem = check_fused_inputs(
      value_, spatial_shapes, reference_points, sampling_offsets,
      attention_logits);
  const c10::cuda::CUDAGuard guard(value_.device());
  const auto references = aligned(reference_points);
  const auto offsets = aligned(sampling_offsets);
  const auto logits = aligned(attention_logits);
  return forward(problem, spatial_shapes, aligned(value_), [&](auto scalar) {
    return raw_taps<decltype(scalar)>(references, offsets, logits);
  });
}

// The gradient of value, by the kernel that adds in the same order every time.
at::Tensor deterministic_grad_value(
    const cuda::Dimensions& dimensions,
    const at::Tensor& grad_output,
    const at::Tensor& value,
    const at::Tensor& locations,
    const at::Tensor& weights) {
  auto grad_value = at::zeros(value.sizes(), sums_like(value));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn_backward",
      [&] {
        C10_CUDA_CHECK(cuda::launch_grad_value_rows(
            dimensions, given_taps<scalar_t>(locations, weights),
            grad_output.const_data_ptr<scalar_t>(),
            grad_value.mutable_data_ptr<cuda::acc_of<scalar_t>>(),
            c10::cuda::getCurrentCUDAStream().stream()));
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return grad_value;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cuda(
    const at::Tensor& grad_output_,
    const at::Tensor& value_,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Problem problem =
      check_inputs(value_, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output("ms_deform_attn", grad_output_, value_, problem);
  const c10::cuda::CUDAGuard guard(value_.device());
  const auto grad_output = aligned(grad_output_);
  const auto value = aligned(value_);
  const auto locations = aligned(sampling_locations);
  const auto weights = aligned(attention_weights);
  auto grad_locations = at::empty(locations.sizes(), locations.options());
  auto grad_weights = at::empty(weights.sizes(), weights.options());
  if (is_empty(problem)) {
    return {at::zeros(value.sizes(), value.options()), grad_locations, grad_weights};
  }
  const LaunchSizes sizes(problem, spatial_shapes, value);
  const bool by_rows = at::globalContext().deterministicAlgorithms();
  auto grad_value = by_rows
      ? deterministic_grad_value(
            sizes.dimensions, grad_output, value, locations, weights)
      : at::zeros(value.sizes(), sums_like(value));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn_backward",
      [&] {
        using acc_t = cuda::acc_of<scalar_t>;
        C10_CUDA_CHECK(cuda::launch_backward(
            sizes.dimensions, given_taps<scalar_t>(locations, weights),
            grad_output.const_data_ptr<scalar_t>(),
            value.const_data_ptr<scalar_t>(),
            by_rows ? nullptr : grad_value.mutable_data_ptr<acc_t>(),
            {grad_locations.mutable_data_ptr<acc_t>(),
             grad_weights.mutable_data_ptr<acc_t>()},
            c10::cuda::getCurrentCUDAStream().stream()));
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

// (width, height) of each level, (levels, 1, 2), filled without a copy from the
// host, which would wait for the device.
at::Tensor map_sizes(at::IntArrayRef spatial_shapes, const at::Tensor& like) {
  auto sizes = at::empty(
      {static_cast<int64_t>(spatial_shapes.size()) / 2, 1, 2}, like.options());
  for (size_t i = 0; i < spatial_shapes.size(); ++i) {
    sizes.select(0, i / 2).select(1, 1 - i % 2).fill_(spatial_shapes[i]);
  }
  return sizes;
}

// From the float32 or float64 gradients of the offsets, in pixels.
at::Tensor sum_to_references(
    const at::Tensor& grad_offsets,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& references) {
  auto grad = grad_offsets.sum({2, 4}); // (images, queries, levels, 2)
  grad = grad * map_sizes(spatial_shapes, grad).squeeze(1);
  if (references.size(2) == 1) {
    grad = grad.sum(2, true);
  }
  return references.size(0) == 1 ? grad.sum(0, true) : grad;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> fused_backward_cuda(
    const at::Tensor& grad_output_,
    const at::Tensor& value_,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& reference_points,
    const at::Tensor& sampling_offsets,
    const at::Tensor& attention_logits) {
  const Problem problem = check_fused_inputs(
      value_, spatial_shapes, reference_points, sampling_offsets,
      attention_logits);
  check_grad_output("ms_deform_attn_fused", grad_output_, value_, problem);
  const c10::cuda::CUDAGuard guard(value_.device());
  const auto grad_output = aligned(grad_output_);
  const auto value = aligned(value_);
  const auto references = aligned(reference_points);
  const auto offsets = aligned(sampling_offsets);
  const auto logits = aligned(attention_logits);
  auto grad_logits = at::empty(logits.sizes(), logits.options());
  if (is_empty(problem)) {
    return {
        at::zeros(value.sizes(), value.options()),
        at::zeros(references.sizes(), references.options()),
        at::empty(offsets.sizes(), offsets.options()), grad_logits};
  }
  const LaunchSizes sizes(problem, spatial_shapes, value);
  auto grad_offsets = at::empty(offsets.sizes(), references.options());
  const bool by_rows = at::globalContext().deterministicAlgorithms();
  at::Tensor grad_value;
  if (by_rows) {
    const auto locations = references.unsqueeze(2).unsqueeze(4) +
        offsets.to(references.scalar_type()) / map_sizes(spatial_shapes, references);
    const auto weights = logits.to(references.scalar_type())
                             .flatten(-2)
                             .softmax(-1)
                             .view(logits.sizes());
    grad_value = deterministic_grad_value(
        sizes.dimensions, grad_output, value, locations.contiguous(),
        weights.contiguous());
  } else {
    grad_value = at::zeros(value.sizes(), sums_like(value));
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, value.scalar_type(),
      "ms_deform_attn_fused_backward", [&] {
        using acc_t = cuda::acc_of<scalar_t>;
        C10_CUDA_CHECK(cuda::launch_backward(
            sizes.dimensions, raw_taps<scalar_t>(references, offsets, logits),
            grad_output.const_data_ptr<scalar_t>(),
            value.const_data_ptr<scalar_t>(),
            by_rows ? nullptr : grad_value.mutable_data_ptr<acc_t>(),
            {grad_offsets.mutable_data_ptr<acc_t>(),
             grad_logits.mutable_data_ptr<scalar_t>()},
            c10::cuda::getCurrentCUDAStream().stream()));
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return {
      grad_value.to(value.scalar_type()),
      sum_to_references(grad_offsets, spatial_shapes, references),
      grad_offsets.to(offsets.scalar_type()), grad_logits};
}

} // namespace

TORCH_LIBRARY_IMPL(vitadapter, CUDA, m) {
  m.impl("ms_deform_attn", &forward_cuda);
  m.impl("ms_deform_attn_backward", &backward_cuda);
  m.impl("ms_deform_attn_fused", &fused_forward_cuda);
  m.impl("ms_deform_attn_fused_backward", &fused_backward_cuda);
}

} // namespace vitadapter
