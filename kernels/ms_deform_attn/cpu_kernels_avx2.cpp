// The CPU kernels for AVX2. The pragma, not a compiler flag, sets the target, and
// nothing but C headers comes before it: see cpu_kernels.h.

#if defined(__x86_64__)

#include <stdint.h>
#include <string.h>

#include "cpu_kernels.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx,avx2,fma,bmi,bmi2,lzcnt,popcnt"))), \
    apply_to = function)
#else
#pragma GCC target("avx,avx2,fma,bmi,bmi2,lzcnt,popcnt")
#endif

#define VITADAPTER_ISA avx2
#define VITADAPTER_VECTOR_BYTES 32
#include "cpu_sampling.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace vitadapter {

const CpuKernels kCpuKernelsAvx2 = {
    "avx2",
    avx2::kFunctions<float>,
    avx2::kFunctions<double>};

} // namespace vitadapter

#endif // defined(__x86_64__)
