// The backward kernels of ms_deform_attn, compiled for every dtype.

#include "dispatch_cuda.cuh"

namespace vitadapter::cuda {

template cudaError_t launch_backward<GivenTaps<float>>(
    const Dimensions&, const GivenTaps<float>&, const float*, const float*, float*,
    const GivenTapGradients<float>&, cudaStream_t);

template cudaError_t launch_backward<GivenTaps<double>>(
    const Dimensions&, const GivenTaps<double>&, const double*, const double*, double*,
    const GivenTapGradients<double>&, cudaStream_t);

template cudaError_t launch_backward<GivenTaps<c10::Half>>(
    const Dimensions&, const GivenTaps<c10::Half>&, const c10::Half*, const c10::Half*, float*,
    const GivenTapGradients<c10::Half>&, cudaStream_t);

template cudaError_t launch_backward<GivenTaps<c10::BFloat16>>(
    const Dimensions&, const GivenTaps<c10::BFloat16>&, const c10::BFloat16*, const c10::BFloat16*, float*,
    const GivenTapGradients<c10::BFloat16>&, cudaStream_t);

} // namespace vitadapter::cuda
