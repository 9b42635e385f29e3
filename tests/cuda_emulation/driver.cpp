// Runs one launch on the emulated device: reads a request, writes the results.
//
// A request is a file of 14 numbers (int64), the spatial shapes (int64) and the
// arrays that the launch reads, each as raw bytes. The answer is a file of the
// arrays that it writes. tests/cuda_emulation_cases.py knows the other side.

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "launch_cuda.h"

namespace {

using namespace vitadapter::cuda;

enum Launch : std::int64_t { kForward, kBackward, kGradValueRows };

// Exactly as long as the array, so that a sanitizer sees any step outside.
class Arrays {
 public:
  Arrays(std::FILE* request, std::FILE* answer)
      : request_(request), answer_(answer) {}

  template <typename T>
  const T* read(std::int64_t count) {
    auto* array = static_cast<T*>(allocate(count * sizeof(T), 0));
    if (std::fread(array, sizeof(T), count, request_) !=
        static_cast<std::size_t>(count)) {
      std::fprintf(stderr, "the request is too short\n");
      std::exit(2);
    }
    return array;
  }

  // NaN in every type, unless the launch adds to it.
  template <typename T>
  T* result(std::int64_t count, bool zero = false) {
    auto* array = static_cast<T*>(allocate(count * sizeof(T), zero ? 0 : 0xff));
    results_.push_back({array, count * sizeof(T)});
    return array;
  }

  void write() {
    for (const auto& [array, bytes] : results_) {
      std::fwrite(array, 1, bytes, answer_);
    }
  }

 private:
  void* allocate(std::size_t bytes, int fill) {
    void* array = nullptr;
    if (posix_memalign(&array, 16, bytes) != 0) {
      std::exit(2);
    }
    std::memset(array, fill, bytes);
    owned_.emplace_back(array, &std::free);
    return array;
  }

  std::FILE* request_;
  std::FILE* answer_;
  std::deque<std::unique_ptr<void, void (*)(void*)>> owned_;
  std::vector<std::pair<void*, std::size_t>> results_;
};

struct Request {
  std::int64_t launch, fused, dtype, order;
  Dimensions dimensions;
  std::int64_t reference_images, reference_levels, atomics;
};

template <typename Scalar, bool kFused>
auto read_taps(Arrays& arrays, const Request& request) {
  using acc_t = acc_of<Scalar>;
  const Dimensions& d = request.dimensions;
  const std::int64_t taps = d.images * d.queries * d.heads * d.levels * d.points;
  if constexpr (kFused) {
    RawTaps<Scalar> raw{};
    raw.reference_images = request.reference_images;
    raw.reference_levels = static_cast<std::int32_t>(request.reference_levels);
    raw.references = arrays.read<acc_t>(
        raw.reference_images * d.queries * raw.reference_levels * 2);
    raw.offsets = arrays.read<Scalar>(taps * 2);
    raw.logits = arrays.read<Scalar>(taps);
    return raw;
  } else {
    GivenTaps<Scalar> given{};
    given.locations = arrays.read<acc_t>(taps * 2);
    given.weights = arrays.read<acc_t>(taps);
    return given;
  }
}

template <typename Scalar, bool kFused>
auto make_gradients(Arrays& arrays, const Dimensions& d) {
  using acc_t = acc_of<Scalar>;
  const std::int64_t taps = d.images * d.queries * d.heads * d.levels * d.points;
  if constexpr (kFused) {
    RawTapGradients<Scalar> raw{};
    raw.offsets = arrays.result<acc_t>(taps * 2);
    raw.logits = arrays.result<Scalar>(taps);
    return raw;
  } else {
    GivenTapGradients<Scalar> given{};
    given.locations = arrays.result<acc_t>(taps * 2);
    given.weights = arrays.result<acc_t>(taps);
    return given;
  }
}

template <typename Scalar, bool kFused>
cudaError_t launch(Arrays& arrays, const Request& request) {
  using acc_t = acc_of<Scalar>;
  const Dimensions& d = request.dimensions;
  const std::int64_t maps = d.images * d.tokens * d.heads * d.head_dim;
  const std::int64_t outputs = d.images * d.queries * d.heads * d.head_dim;
  const auto taps = read_taps<Scalar, kFused>(arrays, request);
  if (request.launch == kForward) {
    const auto* value = arrays.read<Scalar>(maps);
    auto* output = arrays.result<Scalar>(outputs);
    return launch_forward(d, taps, value, output, nullptr);
  }
  const auto* grad_output = arrays.read<Scalar>(outputs);
  if (request.launch == kBackward) {
    const auto* value = arrays.read<Scalar>(maps);
    auto* grad_value =
        request.atomics ? arrays.result<acc_t>(maps, true) : nullptr;
    const auto gradients = make_gradients<Scalar, kFused>(arrays, d);
    return launch_backward(
        d, taps, grad_output, value, grad_value, gradients, nullptr);
  }
  if constexpr (!kFused) {
    return launch_grad_value_rows(
        d, taps, grad_output, arrays.result<acc_t>(maps, true), nullptr);
  }
  return cudaErrorInvalidValue;
}

template <typename Scalar>
cudaError_t launch(Arrays& arrays, const Request& request) {
  return request.fused ? launch<Scalar, true>(arrays, request)
                       : launch<Scalar, false>(arrays, request);
}

cudaError_t launch(Arrays& arrays, const Request& request) {
  switch (request.dtype) {
#if EMULATED_DTYPES > 1
    case 1:
      return launch<double>(arrays, request);
    case 2:
      return launch<c10::Half>(arrays, request);
    case 3:
      return launch<c10::BFloat16>(arrays, request);
#endif
    default:
      return launch<float>(arrays, request);
  }
}

} // namespace

int main(int, char** arguments) {
  std::FILE* file = std::fopen(arguments[1], "rb");
  std::FILE* answer = std::fopen(arguments[2], "wb");
  Arrays arrays(file, answer);
  const std::int64_t* n = arrays.read<std::int64_t>(14);
  Request request{
      n[0], n[1], n[2], n[3],
      {n[4], n[5], n[6], n[7], n[8], n[9], n[10], nullptr},
      n[11], n[12], n[13]};
  request.dimensions.spatial_shapes =
      arrays.read<std::int64_t>(2 * request.dimensions.levels);
  emulation::order = request.order ? emulation::Order::kDescending
                                   : emulation::Order::kAscending;
  const cudaError_t error = is_supported(request.dimensions)
      ? launch(arrays, request)
      : cudaErrorInvalidValue;
  if (error != cudaSuccess) {
    std::fprintf(stderr, "cuda_emulation: error %d\n", static_cast<int>(error));
    return 4;
  }
  arrays.write();
  std::fclose(answer);
  std::fclose(file);
  return 0;
}
