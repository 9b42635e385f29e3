// The forward kernels of ms_deform_attn, compiled for every dtype.

#include "dispatch_cuda.cuh"

namespace vitadapter::cuda {

template cudaError_t launch_forward<GivenTaps<float>>(
    const Dimensions&, const GivenTaps<float>&, const float*, float*, cudaStream_t);

template cudaError_t launch_forward<GivenTaps<double>>(
    const Dimensions&, const GivenTaps<double>&, const double*, double*, cudaStream_t);

template cudaError_t launch_forward<GivenTaps<c10::Half>>(
    const Dimensions&, const GivenTaps<c10::Half>&, const c10::Half*, c10::Half*, cudaStream_t);

template cudaError_t launch_forward<GivenTaps<c10::BFloat16>>(
    const Dimensions&, const GivenTaps<c10::BFloat16>&, const c10::BFloat16*, c10::BFloat16*, cudaStream_t);

} // namespace vitadapter::cuda
