// The forward kernels of ms_deform_attn_fused, compiled for every dtype.

#include "dispatch_cuda.cuh"

namespace vitadapter::cuda {

template cudaError_t launch_forward<RawTaps<float>>(
    const Dimensions&, const RawTaps<float>&, const float*, float*, cudaStream_t);

template cudaError_t launch_forward<RawTaps<double>>(
    const Dimensions&, const RawTaps<double>&, const double*, double*, cudaStream_t);

template cudaError_t launch_forward<RawTaps<c10::Half>>(
    const Dimensions&, const RawTaps<c10::Half>&, const c10::Half*, c10::Half*, cudaStream_t);

template cudaError_t launch_forward<RawTaps<c10::BFloat16>>(
    const Dimensions&, const RawTaps<c10::BFloat16>&, const c10::BFloat16*, c10::BFloat16*, cudaStream_t);

} // namespace vitadapter::cuda
