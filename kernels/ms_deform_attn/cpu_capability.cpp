#include "cpu_capability.h"

#include <c10/util/Exception.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

namespace vitadapter {
namespace {

// From the plainest to the best.
std::vector<const CpuKernels*> supported_kernels() {
  std::vector<const CpuKernels*> supported{&kCpuKernelsBaseline};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
      __builtin_cpu_supports("popcnt")) {
    supported.push_back(&kCpuKernelsAvx2);
    if (__builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      supported.push_back(&kCpuKernelsAvx512);
    }
  }
#endif
  return supported;
}

const CpuKernels* first_choice() {
  const auto supported = supported_kernels();
  const char* wanted = std::getenv("ATEN_CPU_CAPABILITY");
  for (const CpuKernels* kernels : supported) {
    if (wanted != nullptr && std::string(wanted) == kernels->name) {
      return kernels;
    }
  }
  return supported.back();
}

std::atomic<const CpuKernels*>& chosen() {
  static std::atomic<const CpuKernels*> kernels{first_choice()};
  return kernels;
}

std::string cpu_capability(const std::optional<std::string>& use) {
  if (use.has_value()) {
    std::string names;
    for (const CpuKernels* kernels : supported_kernels()) {
      if (*use == kernels->name) {
        chosen() = kernels;
        return *use;
      }
      names += std::string(names.empty() ? "" : ", ") + kernels->name;
    }
    TORCH_CHECK_VALUE(
        false, "_cpu_capability: this processor has ", names, ", got ", *use);
  }
  return cpu_kernels().name;
}

} // namespace

const CpuKernels& cpu_kernels() {
  return *chosen().load(std::memory_order_relaxed);
}

// For tests and benchmarks: the name of the instruction set in use, or another
// one to use from now on.
TORCH_LIBRARY_FRAGMENT(vitadapter, m) {
  m.def("_cpu_capability(str? use=None) -> str", &cpu_capability);
}

} // namespace vitadapter
