// Multi-scale deformable attention on CPU: checks, memory and threads around
// the kernels of cpu_sampling.h. Deterministic for any number of threads.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cstdint>
#include <memory>
#include <tuple>
#include <type_traits>

#include "check_inputs.h"
#include "cpu_capability.h"
#include "cpu_kernels.h"

namespace vitadapter {
namespace {

template <typename T>
const CpuFunctions<T>& functions() {
  if constexpr (std::is_same_v<T, float>) {
    return cpu_kernels().float32;
  } else {
    return cpu_kernels().float64;
  }
}

// What the kernels read: contiguous, and float32 in place of a half type.
struct Operands {
  at::Tensor value;
  at::Tensor taps;
  at::Tensor per_tap;
  at::Tensor reference; // undefined if not fused

  Operands(
      const at::Tensor& value_,
      const at::Tensor& taps_,
      const at::Tensor& per_tap_,
      const at::Tensor& reference_)
      : value(readable(value_)),
        taps(readable(taps_)),
        per_tap(readable(per_tap_)),
        reference(reference_.defined() ? reference_.contiguous() : reference_) {
  }

  static at::Tensor readable(const at::Tensor& tensor) {
    return tensor.to(coordinate_dtype(tensor)).contiguous();
  }
};

template <typename T>
CpuArguments<T> make_arguments(
    const Problem& problem,
    const Operands& operands) {
  CpuArguments<T> args{};
  args.tokens = problem.tokens;
  args.heads = problem.heads;
  args.head_dim = problem.head_dim;
  args.queries = problem.queries;
  args.points = problem.points;
  args.num_levels = static_cast<int64_t>(problem.levels.size());
  args.levels = problem.levels.data();
  args.value = operands.value.const_data_ptr<T>();
  args.taps = operands.taps.const_data_ptr<T>();
  args.per_tap = operands.per_tap.const_data_ptr<T>();
  if (operands.reference.defined()) {
    const at::Tensor& reference = operands.reference;
    args.reference = reference.const_data_ptr<T>();
    args.reference_image_stride =
        reference.size(0) == 1 ? 0 : reference.stride(0);
    args.reference_query_stride = 2 * reference.size(2);
    args.reference_level_stride = reference.size(2) == 1 ? 0 : 2;
  }
  return args;
}

template <typename T>
void run(CpuRange<T> range, const CpuArguments<T>& args, int64_t items) {
  at::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    constexpr int64_t kLine = 64 / sizeof(T); // scratch starts a cache line
    const int64_t elements = cpu_scratch_elements(args);
    const std::unique_ptr<T[]> scratch(new T[elements + kLine]);
    const auto address = reinterpret_cast<uintptr_t>(scratch.get()) / sizeof(T);
    range(args, scratch.get() + (kLine - address % kLine), begin, end);
  });
}

int64_t query_blocks(const Problem& problem) {
  return (problem.queries + kQueryBlock - 1) / kQueryBlock;
}

at::Tensor forward(const Problem& problem, const Operands& operands) {
  auto output = at::empty(
      {problem.batch, problem.queries, problem.heads * problem.head_dim},
      operands.value.options());
  AT_DISPATCH_FLOATING_TYPES(output.scalar_type(), "ms_deform_attn", [&] {
    auto args = make_arguments<scalar_t>(problem, operands);
    args.output = output.mutable_data_ptr<scalar_t>();
    run(functions<scalar_t>().forward, args,
        problem.batch * problem.heads * query_blocks(problem));
  });
  return output;
}

struct Gradients {
  at::Tensor value;
  at::Tensor taps;
  at::Tensor per_tap;
  at::Tensor reference; // (batch, heads, queries, levels, 2) if fused
};

Gradients backward(
    const Problem& problem,
    const Operands& operands,
    const at::Tensor& grad_output) {
  const auto& options = operands.value.options();
  Gradients grads{
      at::empty(operands.value.sizes(), options),
      at::empty(operands.taps.sizes(), options),
      at::empty(operands.per_tap.sizes(), options),
      {}};
  if (operands.reference.defined()) {
    const auto levels = static_cast<int64_t>(problem.levels.size());
    grads.reference = at::empty(
        {problem.batch, problem.heads, problem.queries, levels, 2}, options);
  }
  AT_DISPATCH_FLOATING_TYPES(
      grads.value.scalar_type(), "ms_deform_attn_backward", [&] {
        auto args = make_arguments<scalar_t>(problem, operands);
        args.grad_output = grad_output.const_data_ptr<scalar_t>();
        args.grad_value = grads.value.mutable_data_ptr<scalar_t>();
        args.grad_taps = grads.taps.mutable_data_ptr<scalar_t>();
        args.grad_per_tap = grads.per_tap.mutable_data_ptr<scalar_t>();
        if (grads.reference.defined()) {
          args.grad_reference = grads.reference.mutable_data_ptr<scalar_t>();
        }
        const auto& kernels = functions<scalar_t>();
        const int64_t owners = problem.batch * problem.heads;
        if (at::get_num_threads() <= owners) {
          run(kernels.backward, args, owners);
        } else {
          // Two passes with more to share out, to the same numbers.
          run(kernels.backward_taps, args, owners * query_blocks(problem));
          run(kernels.backward_value, args,
              owners * value_chunks<scalar_t>(problem.head_dim));
        }
      });
  return grads;
}

// Sums partial gradients (batch, heads, queries, levels, 2) to the shape of the
// reference points, always in the same order.
at::Tensor sum_to_reference(
    const at::Tensor& partial,
    const at::Tensor& reference) {
  const int64_t batch = partial.size(0);
  const int64_t heads = partial.size(1);
  const int64_t queries = partial.size(2);
  const int64_t levels = partial.size(3);
  const bool one_image = reference.size(0) == 1;
  const bool one_level = reference.size(2) == 1;
  auto sums = at::zeros(reference.sizes(), reference.options());
  AT_DISPATCH_FLOATING_TYPES(sums.scalar_type(), "sum_to_reference", [&] {
    const auto* from = partial.const_data_ptr<scalar_t>();
    auto* to = sums.mutable_data_ptr<scalar_t>();
    const int64_t row = reference.size(2) * 2;
    at::parallel_for(0, queries, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < batch * heads; ++i) {
        const int64_t image = one_image ? 0 : i / heads;
        for (int64_t q = begin; q < end; ++q) {
          const scalar_t* add = from + (i * queries + q) * levels * 2;
          scalar_t* sum = to + (image * queries + q) * row;
          for (int64_t c = 0; c < levels * 2; ++c) {
            sum[one_level ? c % 2 : c] += add[c];
          }
        }
      }
    });
  });
  return sums;
}

at::Tensor forward_cpu(
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Problem problem =
      check_inputs(value, spatial_shapes, sampling_locations, attention_weights);
  const Operands operands(value, sampling_locations, attention_weights, {});
  return forward(problem, operands).to(value.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor& grad_output,
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Problem problem =
      check_inputs(value, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output("ms_deform_attn", grad_output, value, problem);
  const Operands operands(value, sampling_locations, attention_weights, {});
  const auto grads =
      backward(problem, operands, Operands::readable(grad_output));
  return {grads.value.to(value.scalar_type()), grads.taps, grads.per_tap};
}

at::Tensor fused_forward_cpu(
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& reference_points,
    const at::Tensor& offsets,
    const at::Tensor& logits) {
  const Problem problem = check_fused_inputs(
      value, spatial_shapes, reference_points, offsets, logits);
  const Operands operands(value, offsets, logits, reference_points);
  return forward(problem, operands).to(value.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> fused_backward_cpu(
    const at::Tensor& grad_output,
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& reference_points,
    const at::Tensor& offsets,
    const at::Tensor& logits) {
  const Problem problem = check_fused_inputs(
      value, spatial_shapes, reference_points, offsets, logits);
  check_grad_output("ms_deform_attn_fused", grad_output, value, problem);
  const Operands operands(value, offsets, logits, reference_points);
  const auto grads =
      backward(problem, operands, Operands::readable(grad_output));
  const auto dtype = value.scalar_type();
  return {
      grads.value.to(dtype),
      sum_to_reference(grads.reference, reference_points),
      grads.taps.to(dtype),
      grads.per_tap.to(dtype)};
}

} // namespace

TORCH_LIBRARY_IMPL(vitadapter, CPU, m) {
  m.impl("ms_deform_attn", &forward_cpu);
  m.impl("ms_deform_attn_backward", &backward_cpu);
  m.impl("ms_deform_attn_fused", &fused_forward_cpu);
  m.impl("ms_deform_attn_fused_backward", &fused_backward_cpu);
}

} // namespace vitadapter
