// The CPU kernels for what every processor of the platform has: SSE2, NEON, or
// plain scalars.

#define VITADAPTER_ISA baseline
#define VITADAPTER_VECTOR_BYTES 16
#include "cpu_sampling.h"

namespace vitadapter {

const CpuKernels kCpuKernelsBaseline = {
    "default",
    baseline::kFunctions<float>,
    baseline::kFunctions<double>};

} // namespace vitadapter
