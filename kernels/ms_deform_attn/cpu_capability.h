// Choice of the CPU kernels at run time.

#pragma once

#include "cpu_kernels.h"

namespace vitadapter {

// The kernels for the best instruction set that this processor has, or that
// the environment variable ATEN_CPU_CAPABILITY (default, avx2, avx512) allows,
// as for PyTorch's own kernels.
const CpuKernels& cpu_kernels();

} // namespace vitadapter
