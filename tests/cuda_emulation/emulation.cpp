// The scheduler behind include/cuda_runtime.h.

#include <cuda_runtime.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SWITCHES_TO(save, stack, size) \
  __sanitizer_start_switch_fiber(save, stack, size)
#define SWITCHED(saved, stack, size) \
  __sanitizer_finish_switch_fiber(saved, stack, size)
#else
#define SWITCHES_TO(save, stack, size) ((void)(stack), (void)(size))
#define SWITCHED(saved, stack, size) ((void)0)
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

Order order = Order::kAscending;

namespace {

constexpr std::size_t kStack = 256 * 1024;
constexpr int kWarp = 32;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* sanitizer = nullptr;
  dim3 index;
  Wait wait = Wait::kNone;
  unsigned mask = 0;
  std::uint64_t bits = 0;
  int source = 0;
};

ucontext_t scheduler;
void* scheduler_sanitizer = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_size = 0;
std::vector<Fiber> fibers;
int running = 0; // index of the fiber
const std::function<void()>* program = nullptr;

void to_scheduler(bool for_good) {
  Fiber& fiber = fibers[running];
  SWITCHES_TO(
      for_good ? nullptr : &fiber.sanitizer, scheduler_stack, scheduler_size);
  swapcontext(&fiber.context, &scheduler);
  SWITCHED(fiber.sanitizer, &scheduler_stack, &scheduler_size);
}

void enter() {
  SWITCHED(nullptr, &scheduler_stack, &scheduler_size);
  (*program)();
  fibers[running].wait = Wait::kExited;
  to_scheduler(true);
}

void resume(int index) {
  running = index;
  threadIdx = fibers[index].index;
  fibers[index].wait = Wait::kNone;
  SWITCHES_TO(&scheduler_sanitizer, fibers[index].stack.get(), kStack);
  swapcontext(&scheduler, &fibers[index].context);
  SWITCHED(scheduler_sanitizer, nullptr, nullptr);
}

// Whether all lanes that the fiber's mask names wait at the same place; then
// gives them their results.
bool meet(int index, std::vector<bool>& may_run) {
  const Fiber& fiber = fibers[index];
  const int first = index / kWarp * kWarp;
  const int lanes = std::min<int>(kWarp, static_cast<int>(fibers.size()) - first);
  for (int i = 0; i < kWarp; ++i) {
    if ((fiber.mask >> i & 1) == 0) {
      continue;
    }
    if (i >= lanes || fibers[first + i].wait == Wait::kExited) {
      fail("a mask names a lane that does not exist or has exited");
    }
    const Fiber& other = fibers[first + i];
    if (other.wait == Wait::kNone || other.wait == Wait::kBarrier) {
      return false;
    }
    if (other.wait != fiber.wait || other.mask != fiber.mask) {
      fail("lanes of one mask meet in different operations");
    }
  }
  std::uint64_t results[kWarp] = {};
  for (int i = 0; i < lanes; ++i) {
    if ((fiber.mask >> i & 1) == 0) {
      continue;
    }
    if (fiber.wait == Wait::kShuffle) {
      const int source = fibers[first + i].source;
      if ((fiber.mask >> source & 1) == 0) {
        fail("a shuffle reads a lane that its mask leaves out");
      }
      results[i] = fibers[first + source].bits;
    } else {
      for (int j = 0; j < lanes; ++j) {
        results[i] |= (fiber.mask >> j & 1 & fibers[first + j].bits) << j;
      }
    }
  }
  for (int i = 0; i < lanes; ++i) {
    if ((fiber.mask >> i & 1) != 0) {
      fibers[first + i].bits = results[i];
      may_run[first + i] = true;
    }
  }
  return true;
}

// The fibers that can go on, once none runs any more.
std::vector<bool> release() {
  const int count = static_cast<int>(fibers.size());
  std::vector<bool> may_run(count, false);
  int exited = 0;
  int at_barrier = 0;
  bool progress = false;
  for (int i = 0; i < count; ++i) {
    exited += fibers[i].wait == Wait::kExited;
    at_barrier += fibers[i].wait == Wait::kBarrier;
    const bool in_warp =
        fibers[i].wait == Wait::kShuffle || fibers[i].wait == Wait::kBallot;
    if (in_warp && !may_run[i]) {
      progress |= meet(i, may_run);
    }
  }
  if (!progress && exited < count) {
    if (at_barrier < count) {
      fail("threads wait for others that never come");
    }
    may_run.assign(count, true);
  }
  return may_run;
}

void run_block() {
  const int count = static_cast<int>(fibers.size());
  for (int i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    const unsigned x = blockDim.x, y = blockDim.y;
    fiber.index = dim3(i % x, i / x % y, i / (x * y));
    fiber.wait = Wait::kNone;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &enter, 0);
  }
  std::vector<bool> may_run(count, true);
  bool any = true;
  while (any) {
    any = false;
    for (int i = 0; i < count; ++i) {
      const int index = order == Order::kAscending ? i : count - 1 - i;
      if (may_run[index]) {
        resume(index);
        any = true;
      }
    }
    may_run = release();
  }
}

} // namespace

void fail(const char* what) {
  std::fprintf(
      stderr, "cuda_emulation: %s (block %u %u %u, thread %u)\n", what,
      blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
  std::exit(3);
}

int lane() {
  return running % kWarp;
}

std::uint64_t exchange(Wait wait, unsigned mask, std::uint64_t bits, int source) {
  if (wait != Wait::kBarrier && (mask >> lane() & 1) == 0) {
    fail("a lane's own mask leaves it out");
  }
  Fiber& fiber = fibers[running];
  fiber.wait = wait;
  fiber.mask = mask;
  fiber.bits = bits;
  fiber.source = source;
  to_scheduler(false);
  return fiber.bits;
}

cudaError_t run_grid(
    const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  if (threads == 0 || threads > 1024 || gridDim.x == 0 || gridDim.y == 0 ||
      gridDim.z == 0 || gridDim.x > 0x7fffffff || gridDim.y > 65535 ||
      gridDim.z > 65535) {
    return cudaErrorInvalidValue;
  }
  fibers.resize(threads);
  program = &thread;
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        run_block();
      }
    }
  }
  return cudaSuccess;
}

} // namespace emulation
