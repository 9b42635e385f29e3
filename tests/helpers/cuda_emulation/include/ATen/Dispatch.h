// Restricts the operators of this build to float32 where EMULATED_FLOAT_ONLY is
// defined, so that it compiles quickly.

#pragma once

#include_next <ATen/Dispatch.h>

#ifdef EMULATED_FLOAT_ONLY
#undef AT_DISPATCH_FLOATING_TYPES_AND2
#define AT_DISPATCH_FLOATING_TYPES_AND2(A, B, TYPE, NAME, ...) \
  AT_DISPATCH_SWITCH(                                          \
      TYPE, NAME, AT_DISPATCH_CASE(at::ScalarType::Float, __VA_ARGS__))
#endif
