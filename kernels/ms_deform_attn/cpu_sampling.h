// The table of functions of one instruction set that the rest of the extension
// calls.

#pragma once

#include "cpu_backward.h"
#include "cpu_forward.h"
#include "cpu_kernels.h"

namespace vitadapter {
namespace VITADAPTER_ISA {
namespace {

template <typename T>
constexpr CpuFunctions<T> kFunctions = {
    forward<T>,
    backward<T, true, true>,
    backward<T, true, false>,
    backward<T, false, true>,
};

} // namespace
} // namespace VITADAPTER_ISA
} // namespace vitadapter
