// The deterministic kernel for the gradient of value, compiled for every dtype.

#include <limits>

#include "dispatch_cuda.cuh"
#include "grad_value_rows_cuda.cuh"

namespace vitadapter::cuda {

bool is_supported(const Dimensions& dimensions) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (dimensions.levels > kMostLevels || dimensions.points > kMost / 256 ||
      dimensions.heads > kMost / dimensions.head_dim) {
    return false;
  }
  // One row and column more on each side, for taps that touch the border from
  // outside; at least 16, since four bits of a pixel's number tell its corners.
  const int64_t stride =
      std::max<int64_t>(16, dimensions.heads * dimensions.head_dim);
  for (int64_t i = 0; i < dimensions.levels; ++i) {
    const int64_t height = dimensions.spatial_shapes[2 * i];
    const int64_t width = dimensions.spatial_shapes[2 * i + 1];
    if (height + 2 > kMost / stride / (width + 2)) {
      return false;
    }
  }
  return true;
}

template <typename Scalar>
cudaError_t launch_grad_value_rows(
    const Dimensions& dimensions,
    const GivenTaps<Scalar>& taps,
    const Scalar* grad_output,
    acc_of<Scalar>* grad_value,
    cudaStream_t stream) {
  int64_t rows = 0;
  for (int64_t i = 0; i < dimensions.levels; ++i) {
    rows += dimensions.spatial_shapes[2 * i];
  }
  using Any = Config<Scalar, 0, 0, 0>;
  return launch_over_heads<Any>(
      &grad_value_rows_kernel<Any>, dimensions,
      (rows + kRowsPerBlock - 1) / kRowsPerBlock, stream, taps, grad_output,
      grad_value);
}

template cudaError_t launch_grad_value_rows<float>(
    const Dimensions&, const GivenTaps<float>&, const float*, float*,
    cudaStream_t);

template cudaError_t launch_grad_value_rows<double>(
    const Dimensions&, const GivenTaps<double>&, const double*, double*,
    cudaStream_t);

template cudaError_t launch_grad_value_rows<c10::Half>(
    const Dimensions&, const GivenTaps<c10::Half>&, const c10::Half*, float*,
    cudaStream_t);

template cudaError_t launch_grad_value_rows<c10::BFloat16>(
    const Dimensions&, const GivenTaps<c10::BFloat16>&, const c10::BFloat16*,
    float*, cudaStream_t);

} // namespace vitadapter::cuda
