// The CPU kernels for AVX512. The pragma, not a compiler flag, sets the target, and
// nothing but C headers comes before it: see cpu_kernels.h.

#if defined(__x86_64__)

#include <stdint.h>
#include <string.h>

#include "cpu_kernels.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx,avx2,fma,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"))), \
    apply_to = function)
#else
#pragma GCC target("avx,avx2,fma,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")
#endif

#define VITADAPTER_ISA avx512
#define VITADAPTER_VECTOR_BYTES 64
#include "cpu_sampling.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace vitadapter {

const CpuKernels kCpuKernelsAvx512 = {
    "avx512",
    avx512::kFunctions<float>,
    avx512::kFunctions<double>};

} // namespace vitadapter

#endif // defined(__x86_64__)
