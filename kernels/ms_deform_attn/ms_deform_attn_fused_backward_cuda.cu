// The backward kernels of ms_deform_attn_fused, compiled for every dtype.

#include "dispatch_cuda.cuh"

namespace vitadapter::cuda {

template cudaError_t launch_backward<RawTaps<float>>(
    const Dimensions&, const RawTaps<float>&, const float*, const float*, float*,
    const RawTapGradients<float>&, cudaStream_t);

template cudaError_t launch_backward<RawTaps<double>>(
    const Dimensions&, const RawTaps<double>&, const double*, const double*, double*,
    const RawTapGradients<double>&, cudaStream_t);

template cudaError_t launch_backward<RawTaps<c10::Half>>(
    const Dimensions&, const RawTaps<c10::Half>&, const c10::Half*, const c10::Half*, float*,
    const RawTapGradients<c10::Half>&, cudaStream_t);

template cudaError_t launch_backward<RawTaps<c10::BFloat16>>(
    const Dimensions&, const RawTaps<c10::BFloat16>&, const c10::BFloat16*, const c10::BFloat16*, float*,
    const RawTapGradients<c10::BFloat16>&, cudaStream_t);

} // namespace vitadapter::cuda
