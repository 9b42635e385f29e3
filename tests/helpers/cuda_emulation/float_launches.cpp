// The launches of float32 alone, for builds that need no other dtype.

#include "dispatch_cuda.cuh"

namespace vitadapter::cuda {

template cudaError_t launch_forward<GivenTaps<float>>(
    const Dimensions&, const GivenTaps<float>&, const float*, float*, cudaStream_t);

template cudaError_t launch_forward<RawTaps<float>>(
    const Dimensions&, const RawTaps<float>&, const float*, float*, cudaStream_t);

template cudaError_t launch_backward<GivenTaps<float>>(
    const Dimensions&, const GivenTaps<float>&, const float*, const float*, float*,
    const GivenTapGradients<float>&, cudaStream_t);

template cudaError_t launch_backward<RawTaps<float>>(
    const Dimensions&, const RawTaps<float>&, const float*, const float*, float*,
    const RawTapGradients<float>&, cudaStream_t);

} // namespace vitadapter::cuda
