// The deterministic kernel for the gradient of value, compiled for every dtype.

#include "dispatch_cuda.cuh"
#include "grad_value_rows_cuda.cuh"

namespace vitadapter::cuda {

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
  const auto launch = [&](auto config) {
    using Any = decltype(config);
    return launch_over_heads<Any>(
        &grad_value_rows_kernel<Any>, dimensions,
        (rows + kRowsPerBlock - 1) / kRowsPerBlock, stream, taps, grad_output,
        grad_value);
  };
  return is_wide(dimensions) ? launch(Config<Scalar, 0, 0, 0, true>())
                             : launch(Config<Scalar, 0, 0, 0>());
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
