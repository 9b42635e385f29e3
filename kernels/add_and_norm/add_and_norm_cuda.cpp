// Layer norm of a sum on CUDA: checks and memory. The schemas, the same in plain
// PyTorch, and the gradients are in vitadapter/layers/fast/norm.py.

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>

#include "add_and_norm.h"

namespace vitadapter {
namespace {

using Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

void check_float(const at::Tensor& tensor, const at::Tensor& like, const char* name) {
  TORCH_CHECK(
      tensor.scalar_type() == at::kFloat && tensor.device() == like.device(), name,
      " must be float32 on ", like.device(), ", got ", tensor.scalar_type(), " on ",
      tensor.device());
}

// Rows of a stream (..., C).
int64_t rows_of(const at::Tensor& x, const at::Tensor& weight) {
  TORCH_CHECK(
      x.dim() > 0 && weight.dim() == 1 && weight.size(0) == x.size(-1),
      "the norm must have one weight for each channel of x, got ", weight.sizes(),
      " for ", x.sizes());
  const int64_t channels = x.size(-1);
  TORCH_CHECK(
      channels > 0 && channels <= cuda::kMostChannels, "x must have 1 to ",
      cuda::kMostChannels, " channels, got ", channels);
  const int64_t rows = x.numel() / channels;
  TORCH_CHECK(
      rows <= std::numeric_limits<int32_t>::max(), "x has too many rows, ", rows);
  return rows;
}

void check_half(at::ScalarType dtype) {
  TORCH_CHECK(
      dtype == at::kHalf || dtype == at::kBFloat16,
      "the norm must be in float16 or bfloat16, got ", dtype);
}

template <typename Use>
void with_half(at::ScalarType dtype, const Use& use) {
  if (dtype == at::kHalf) {
    use(c10::Half());
  } else {
    use(c10::BFloat16());
  }
}

Tensors add_and_norm(
    const at::Tensor& x_,
    const std::optional<at::Tensor>& branch_,
    const at::Tensor& weight_,
    const at::Tensor& bias_,
    double eps,
    at::ScalarType dtype) {
  check_float(x_, x_, "x");
  check_float(weight_, x_, "weight");
  check_float(bias_, x_, "bias");
  check_half(dtype);
  const int64_t rows = rows_of(x_, weight_);
  TORCH_CHECK(bias_.sizes() == weight_.sizes(), "weight and bias must have one shape");
  const c10::cuda::CUDAGuard guard(x_.device());
  const auto x = x_.contiguous();
  const auto weight = weight_.contiguous();
  const auto bias = bias_.contiguous();
  at::Tensor branch;
  if (branch_.has_value()) {
    TORCH_CHECK(
        branch_->sizes() == x.sizes() && branch_->device() == x.device(),
        "branch must have the shape and device of x, got ", branch_->sizes(), " for ",
        x.sizes());
    branch = branch_->contiguous();
    if (branch.scalar_type() != dtype) {
      branch = branch.to(at::kFloat);
    }
  }
  auto total = branch.defined() ? at::empty(x.sizes(), x.options())
                                : at::empty({0}, x.options());
  auto normed = at::empty(x.sizes(), x.options().dtype(dtype));
  auto mean = at::empty({rows}, x.options());
  auto rstd = at::empty({rows}, x.options());
  if (rows == 0) {
    return {total, normed, mean, rstd};
  }
  with_half(dtype, [&](auto half) {
    using half_t = decltype(half);
    const auto launch = [&](const auto* of_branch) {
      using branch_t = std::decay_t<decltype(*of_branch)>;
      const cuda::AddAndNorm<half_t, branch_t> problem{
          rows, static_cast<int>(x.size(-1)), static_cast<float>(eps),
          x.const_data_ptr<float>(), of_branch, weight.const_data_ptr<float>(),
          bias.const_data_ptr<float>(), total.mutable_data_ptr<float>(),
          normed.mutable_data_ptr<half_t>(), mean.mutable_data_ptr<float>(),
          rstd.mutable_data_ptr<float>()};
      C10_CUDA_CHECK(
          cuda::launch(problem, c10::cuda::getCurrentCUDAStream().stream()));
    };
    if (!branch.defined()) {
      launch(static_cast<const float*>(nullptr));
    } else if (branch.scalar_type() == at::kFloat) {
      launch(branch.const_data_ptr<float>());
    } else {
      launch(branch.const_data_ptr<half_t>());
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {total, normed, mean, rstd};
}

Tensors add_and_norm_backward(
    const at::Tensor& grad_normed_,
    const std::optional<at::Tensor>& grad_total_,
    const at::Tensor& total_,
    const at::Tensor& mean_,
    const at::Tensor& rstd_,
    const at::Tensor& weight_,
    at::ScalarType branch_dtype) {
  check_float(total_, total_, "total");
  check_float(mean_, total_, "mean");
  check_float(rstd_, total_, "rstd");
  check_float(weight_, total_, "weight");
  check_half(grad_normed_.scalar_type());
  const int64_t rows = rows_of(total_, weight_);
  TORCH_CHECK(
      grad_normed_.sizes() == total_.sizes() &&
          grad_normed_.device() == total_.device() && mean_.numel() == rows &&
          rstd_.numel() == rows,
      "the gradient must have the shape and device of the sum, and mean and rstd "
      "its rows");
  const c10::cuda::CUDAGuard guard(total_.device());
  const auto grad_normed = grad_normed_.contiguous();
  const auto total = total_.contiguous();
  const auto mean = mean_.contiguous();
  const auto rstd = rstd_.contiguous();
  const auto weight = weight_.contiguous();
  at::Tensor grad_total;
  if (grad_total_.has_value()) {
    check_float(*grad_total_, total, "grad_total");
    TORCH_CHECK(
        grad_total_->sizes() == total.sizes(), "the gradients must have one shape");
    grad_total = grad_total_->contiguous();
  }
  auto grad_x = at::empty(total.sizes(), total.options());
  const auto half = grad_normed.scalar_type();
  auto grad_branch = branch_dtype == half
      ? at::empty(total.sizes(), total.options().dtype(half))
      : at::Tensor();
  const int64_t blocks = std::min(rows, cuda::kMostBlocks);
  auto grad_affine = at::empty({2, blocks, total.size(-1)}, total.options());
  if (rows > 0) {
    with_half(half, [&](auto zero) {
      using half_t = decltype(zero);
      const cuda::AddAndNormBackward<half_t> problem{
          rows, static_cast<int>(total.size(-1)), blocks,
          grad_normed.const_data_ptr<half_t>(),
          grad_total.defined() ? grad_total.const_data_ptr<float>() : nullptr,
          total.const_data_ptr<float>(), mean.const_data_ptr<float>(),
          rstd.const_data_ptr<float>(), weight.const_data_ptr<float>(),
          grad_x.mutable_data_ptr<float>(),
          grad_branch.defined() ? grad_branch.mutable_data_ptr<half_t>() : nullptr,
          grad_affine.mutable_data_ptr<float>()};
      C10_CUDA_CHECK(
          cuda::launch(problem, c10::cuda::getCurrentCUDAStream().stream()));
    });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (!grad_branch.defined()) {
    grad_branch = branch_dtype == at::kFloat ? at::empty({0}, total.options())
                                             : grad_x.to(branch_dtype);
  }
  const auto affine = grad_affine.sum(1);
  return {grad_x, grad_branch, affine.select(0, 0), affine.select(0, 1)};
}

} // namespace

TORCH_LIBRARY_IMPL(vitadapter, CUDA, m) {
  m.impl("add_and_norm", &add_and_norm);
  m.impl("add_and_norm_backward", &add_and_norm_backward);
}

} // namespace vitadapter
