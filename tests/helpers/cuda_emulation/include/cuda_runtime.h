// Gives the CUDA of our kernels a meaning on CPU, so that the very device code
// runs without a GPU. Stands in for the toolkit's header of the same name.
//
// Every thread of a block is a fiber. A fiber runs until it needs others: at a
// barrier until all threads of the block are there, at a shuffle or ballot until
// all lanes that its mask names are. Then these go on, the results exchanged.
// What would be undefined on a GPU (a lane that the mask leaves out, one that
// never comes, misaligned vectors, an impossible grid) is an exception out of the
// launch. Blocks run one after the other.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#define CUDART_VERSION 13000
#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1)
      : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

// As the running fiber sees them.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

// Fibers are resumed in this order; a result must not depend on it.
enum class Order { kAscending, kDescending };
extern Order order;

enum class Wait : int { kNone, kBarrier, kShuffle, kBallot, kExited };

// Hands `bits` in, waits for the others, and returns what this lane gets. For a
// shuffle `source` is the lane of the warp that it reads.
std::uint64_t exchange(Wait wait, unsigned mask, std::uint64_t bits, int source);

// Which of the faults that a test has planted is at work; 0 for none.
inline int fault = 0;

// How many device guards live; without one, the stream is of no known device.
inline int guards = 0;
inline cudaStream_t current_stream() {
  static int stream;
  return guards > 0 ? &stream : nullptr;
}

[[noreturn]] void fail(const char* what);
cudaError_t run_grid(
    const cudaLaunchConfig_t& config, const std::function<void()>& thread);
int lane();

template <typename T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(Wait::kShuffle, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T* aligned(T* pointer) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % sizeof(T) != 0) {
    fail("misaligned vector access");
  }
  return pointer;
}

} // namespace emulation

// Launches are complete when they return.
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

inline void __syncthreads() {
  emulation::exchange(emulation::Wait::kBarrier, 0, 0, 0);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = emulation::lane() / width * width;
  return emulation::shuffle(mask, value, first + source % width);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int source = emulation::lane() ^ lanes;
  const bool same_group = source / width == emulation::lane() / width;
  return emulation::shuffle(mask, value, same_group ? source : emulation::lane());
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(emulation::exchange(
      emulation::Wait::kBallot, mask, predicate != 0, 0));
}

inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}

inline float __fdividef(float dividend, float divisor) {
  return dividend / divisor;
}

// By memcpy: the kernels read arrays of numbers as vectors.
template <typename T>
T __ldg(const T* from) {
  T value;
  std::memcpy(&value, emulation::aligned(from), sizeof(T));
  return value;
}

template <typename T>
T atomicAdd(T* to, T term) {
  const T before = *emulation::aligned(to);
  *to = before + term;
  return before;
}

inline float4 atomicAdd(float4* to, float4 term) {
  float4 before;
  std::memcpy(&before, emulation::aligned(to), sizeof(before));
  const float4 after{
      before.x + term.x, before.y + term.y, before.z + term.z,
      before.w + term.w};
  std::memcpy(static_cast<void*>(to), &after, sizeof(after));
  return before;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config,
    void (*kernel)(Parameters...),
    Arguments&&... arguments) {
  static_assert((sizeof(Parameters) + ...) <= 4096, "parameter space");
  if (config->stream == nullptr || config->stream != emulation::current_stream()) {
    emulation::fail("a launch on another stream than the current one");
  }
  const std::tuple<Parameters...> parameters(
      std::forward<Arguments>(arguments)...);
  return emulation::run_grid(
      *config, [&] { std::apply(kernel, parameters); });
}
