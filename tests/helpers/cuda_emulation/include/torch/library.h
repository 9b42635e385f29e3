// Puts the operators of this build into a namespace of their own, where CPU
// tensors stand in for those of the device.

#pragma once

#include_next <torch/library.h>

#undef TORCH_LIBRARY
#define TORCH_LIBRARY(ns, m) TORCH_LIBRARY_FRAGMENT(EMULATED_NAMESPACE, m)
#undef TORCH_LIBRARY_IMPL
#define EMULATED_IMPL(ns, m) _TORCH_LIBRARY_IMPL(ns, CPU, m, C10_UID)
#define TORCH_LIBRARY_IMPL(ns, k, m) EMULATED_IMPL(EMULATED_NAMESPACE, m)
