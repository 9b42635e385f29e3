// Runs the CPU kernels of every instruction set that this processor has on
// random small problems, in buffers of exactly the right size, to be compiled
// with -fsanitize=address,undefined. Values include NaN, infinities and 1e30.
// Also checks that the two passes of the shared-out backward give the same bits
// as the single pass. Needs no PyTorch. Usage: cpu_kernels_fuzz CASES

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cpu_kernels.h"

using namespace vitadapter;

namespace {

std::mt19937 random_bits(0);

int pick(int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(random_bits);
}

template <typename T>
std::vector<T> numbers(int64_t count, double low, double high, bool special) {
  const double inf = std::numeric_limits<double>::infinity();
  const double odd[] = {inf, -inf, inf - inf, 1e30, -1e30, 0.0};
  std::uniform_real_distribution<double> uniform(low, high);
  std::vector<T> result(count);
  for (T& x : result) {
    x = static_cast<T>(
        special && pick(0, 9) == 0 ? odd[pick(0, 5)] : uniform(random_bits));
  }
  return result;
}

template <typename T>
struct Gradients {
  std::vector<T> value, taps, per_tap, reference;
};

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename T>
void run(CpuRange<T> range, const CpuArguments<T>& args, int64_t items) {
  if (items == 0) {
    return;
  }
  std::vector<T> scratch(cpu_scratch_elements(args));
  const int64_t middle = pick(0, static_cast<int>(items));
  range(args, scratch.data(), 0, middle);
  range(args, scratch.data(), middle, items);
}

template <typename T>
bool one_case(const CpuFunctions<T>& kernels) {
  const bool fused = pick(0, 1) == 1;
  const bool special = pick(0, 1) == 1;
  const int64_t batch = pick(1, 2);
  const int dims[] = {1, 2, 3, 4, 7, 8, 15, 16, 24, 33, 64, 65, 130};
  std::vector<Level> levels(pick(1, 3));
  CpuArguments<T> args{};
  for (Level& level : levels) {
    level = {pick(1, 6), pick(1, 6), args.tokens};
    args.tokens += level.height * level.width;
  }
  args.heads = pick(1, 3);
  args.head_dim = dims[pick(0, 12)];
  args.queries = pick(0, 9) == 0 ? pick(60, 140) : pick(1, 9);
  args.points = pick(1, 5);
  args.num_levels = static_cast<int64_t>(levels.size());
  args.levels = levels.data();
  const int64_t rows = batch * args.queries * args.heads;
  const int64_t taps = rows * args.num_levels * args.points;
  const auto value =
      numbers<T>(batch * args.tokens * args.heads * args.head_dim, -1, 1, special);
  const auto coordinates = numbers<T>(taps * 2, fused ? -4 : -0.5, fused ? 4 : 1.5, special);
  const auto per_tap = numbers<T>(taps, -3, 3, special);
  const auto grad_output = numbers<T>(rows * args.head_dim, -1, 1, special);
  const bool one_level = pick(0, 1) == 1;
  const auto reference = numbers<T>(
      batch * args.queries * (one_level ? 1 : args.num_levels) * 2, -0.2, 1.2, special);
  std::vector<T> output(rows * args.head_dim);
  args.value = value.data();
  args.taps = coordinates.data();
  args.per_tap = per_tap.data();
  if (fused) {
    args.reference = reference.data();
    args.reference_query_stride = one_level ? 2 : 2 * args.num_levels;
    args.reference_image_stride = args.queries * args.reference_query_stride;
    args.reference_level_stride = one_level ? 0 : 2;
  }
  args.output = output.data();
  args.grad_output = grad_output.data();
  const int64_t owners = batch * args.heads;
  const int64_t blocks = (args.queries + kQueryBlock - 1) / kQueryBlock;
  run(kernels.forward, args, owners * blocks);

  Gradients<T> results[2];
  for (int passes = 1; passes <= 2; ++passes) {
    Gradients<T>& grads = results[passes - 1];
    grads.value.assign(value.size(), T(7));
    grads.taps.assign(coordinates.size(), T(7));
    grads.per_tap.assign(per_tap.size(), T(7));
    grads.reference.assign(fused ? rows * args.num_levels * 2 : 0, T(7));
    args.grad_value = grads.value.data();
    args.grad_taps = grads.taps.data();
    args.grad_per_tap = grads.per_tap.data();
    args.grad_reference = fused ? grads.reference.data() : nullptr;
    if (passes == 1) {
      run(kernels.backward, args, owners);
    } else {
      run(kernels.backward_taps, args, owners * blocks);
      run(kernels.backward_value, args, owners * value_chunks<T>(args.head_dim));
    }
  }
  // Where NaN may be, its sign bit depends on the order of operands.
  return special ||
      (same_bits(results[0].value, results[1].value) &&
       same_bits(results[0].taps, results[1].taps) &&
       same_bits(results[0].per_tap, results[1].per_tap) &&
       same_bits(results[0].reference, results[1].reference));
}

} // namespace

int main(int, char** arguments) {
  std::vector<const CpuKernels*> all{&kCpuKernelsBaseline};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    all.push_back(&kCpuKernelsAvx2);
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    all.push_back(&kCpuKernelsAvx512);
  }
#endif
  const int cases = std::atoi(arguments[1]);
  for (int i = 0; i < cases; ++i) {
    const CpuKernels& kernels = *all[i % all.size()];
    const bool good = i / all.size() % 4 == 0 ? one_case(kernels.float64)
                                              : one_case(kernels.float32);
    if (!good) {
      std::printf("case %d, %s: one pass and two passes differ\n", i, kernels.name);
      return 1;
    }
  }
  std::printf("%d cases on %zu instruction sets\n", cases, all.size());
  return 0;
}
