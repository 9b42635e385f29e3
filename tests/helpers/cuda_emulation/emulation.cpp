// The scheduler behind include/cuda_runtime.h.

#include <cuda_runtime.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
// Functions that never returned have left their marks there.
#define USED_ANEW(stack, size) __asan_unpoison_memory_region(stack, size)
#define SWITCHES_TO(save, stack, size) \
  __sanitizer_start_switch_fiber(save, stack, size)
#define SWITCHED(saved, stack, size) \
  __sanitizer_finish_switch_fiber(saved, stack, size)
#else
#define USED_ANEW(stack, size) ((void)0)
#define SWITCHES_TO(save, stack, size) ((void)(stack), (void)(size))
#define SWITCHED(saved, stack, size) ((void)0)
#endif

// A stack to run on. Where we know how, switching keeps to the registers that
// functions preserve: swapcontext() asks the system for the signal mask each time,
// which would be most of the emulation's work.
#if defined(__x86_64__)
extern "C" void emulation_switch(void** save, void* to);
asm(R"(
  .text
  .type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

class Context {
 public:
  void start(char* stack, std::size_t size, void (*function)()) {
    // What emulation_switch() pops, and no caller to return to.
    void* frame[8] = {};
    frame[6] = reinterpret_cast<void*>(function);
    top_ = stack + size - sizeof(frame);
    std::memcpy(top_, frame, sizeof(frame));
  }
  static void change(Context& from, Context& to) {
    emulation_switch(&from.top_, to.top_);
  }

 private:
  void* top_ = nullptr;
};
#else
#include <ucontext.h>

class Context {
 public:
  void start(char* stack, std::size_t size, void (*function)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = size;
    context_.uc_link = nullptr;
    makecontext(&context_, function, 0);
  }
  static void change(Context& from, Context& to) {
    swapcontext(&from.context_, &to.context_);
  }

 private:
  ucontext_t context_;
};
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

Order order = Order::kAscending;

namespace {

constexpr std::size_t kStack = 256 * 1024;
constexpr int kWarp = 32;

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* sanitizer = nullptr;
  dim3 index;
  Wait wait = Wait::kNone;
  unsigned mask = 0;
  std::uint64_t bits = 0;
  int source = 0;
};

Context scheduler;
[[maybe_unused]] void* scheduler_sanitizer = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_size = 0;
std::vector<Fiber> fibers;
int running = 0; // index of the fiber
const std::function<void()>* program = nullptr;
std::exception_ptr failure; // of the fiber that ran last

void to_scheduler(bool for_good) {
  Fiber& fiber = fibers[running];
  SWITCHES_TO(
      for_good ? nullptr : &fiber.sanitizer, scheduler_stack, scheduler_size);
  Context::change(fiber.context, scheduler);
  SWITCHED(fiber.sanitizer, &scheduler_stack, &scheduler_size);
}

void enter() {
  SWITCHED(nullptr, &scheduler_stack, &scheduler_size);
  // An exception cannot leave the fiber's stack by itself.
  try {
    (*program)();
  } catch (...) {
    failure = std::current_exception();
  }
  fibers[running].wait = Wait::kExited;
  to_scheduler(true);
}

void resume(int index) {
  running = index;
  threadIdx = fibers[index].index;
  SWITCHES_TO(&scheduler_sanitizer, fibers[index].stack.get(), kStack);
  Context::change(scheduler, fibers[index].context);
  SWITCHED(scheduler_sanitizer, nullptr, nullptr);
  if (failure) {
    std::rethrow_exception(std::exchange(failure, nullptr));
  }
}

bool in_warp(Wait wait) {
  return wait == Wait::kShuffle || wait == Wait::kBallot;
}

// Whether all lanes that the fiber's mask names wait at the same place.
bool has_met(const Fiber& fiber, int first, int lanes) {
  for (int i = 0; i < kWarp; ++i) {
    if ((fiber.mask >> i & 1) == 0) {
      continue;
    }
    if (i >= lanes || fibers[first + i].wait == Wait::kExited) {
      fail("a mask names a lane that does not exist or has exited");
    }
    const Fiber& other = fibers[first + i];
    if (!in_warp(other.wait)) {
      return false;
    }
    if (other.wait != fiber.wait || other.mask != fiber.mask) {
      fail("lanes of one mask meet in different operations");
    }
  }
  return true;
}

// Exchanges what the lanes of the fiber's mask handed in, and lets them run.
void hand_out(const Fiber& fiber, int first, int lanes) {
  const unsigned mask = fiber.mask;
  const Wait wait = fiber.wait;
  std::uint64_t results[kWarp] = {};
  for (int i = 0; i < lanes; ++i) {
    if ((mask >> i & 1) == 0) {
      continue;
    }
    if (wait == Wait::kShuffle) {
      const int source = fibers[first + i].source;
      if ((mask >> source & 1) == 0) {
        fail("a shuffle reads a lane that its mask leaves out");
      }
      results[i] = fibers[first + source].bits;
    } else {
      for (int j = 0; j < lanes; ++j) {
        results[i] |= (mask >> j & 1 & fibers[first + j].bits) << j;
      }
    }
  }
  for (int i = 0; i < lanes; ++i) {
    if ((mask >> i & 1) != 0) {
      fibers[first + i].bits = results[i];
      fibers[first + i].wait = Wait::kNone;
    }
  }
}

// Runs one warp until all its lanes have exited or wait at a barrier.
void run_warp(int first, int lanes) {
  while (true) {
    bool any = false;
    for (int i = 0; i < lanes; ++i) {
      const int lane = order == Order::kAscending ? i : lanes - 1 - i;
      if (fibers[first + lane].wait == Wait::kNone) {
        resume(first + lane);
        any = true;
      }
    }
    bool waiting = false;
    for (int i = 0; i < lanes; ++i) {
      const Fiber& fiber = fibers[first + i];
      if (in_warp(fiber.wait)) {
        waiting = true;
        if (has_met(fiber, first, lanes)) {
          hand_out(fiber, first, lanes);
          any = true;
        }
      }
    }
    if (!any) {
      if (waiting) {
        fail("lanes wait for others that never come");
      }
      return;
    }
  }
}

void start_block() {
  for (int i = 0; i < static_cast<int>(fibers.size()); ++i) {
    Fiber& fiber = fibers[i];
    const unsigned x = blockDim.x, y = blockDim.y;
    fiber.index = dim3(i % x, i / x % y, i / (x * y));
    fiber.wait = Wait::kNone;
    USED_ANEW(fiber.stack.get(), kStack);
    fiber.context.start(fiber.stack.get(), kStack, &enter);
  }
}

// Each warp runs as far as it can before the next one starts, so that whatever
// they share goes wrong without a barrier.
void run_block() {
  const int count = static_cast<int>(fibers.size());
  const int warps = (count + kWarp - 1) / kWarp;
  start_block();
  while (true) {
    for (int i = 0; i < warps; ++i) {
      const int warp = order == Order::kAscending ? i : warps - 1 - i;
      run_warp(warp * kWarp, std::min(kWarp, count - warp * kWarp));
    }
    const auto exited = std::count_if(
        fibers.begin(), fibers.end(),
        [](const Fiber& fiber) { return fiber.wait == Wait::kExited; });
    if (exited == count) {
      return;
    }
    if (exited > 0) {
      fail("threads wait at a barrier for others that never come");
    }
    for (Fiber& fiber : fibers) {
      fiber.wait = Wait::kNone;
    }
  }
}

} // namespace

#define FOR_TESTS extern "C" __attribute__((visibility("default")))

// From the last thread to the first, or back to the usual order.
FOR_TESTS void emulation_set_descending(bool descending) {
  order = descending ? Order::kDescending : Order::kAscending;
}

FOR_TESTS void emulation_set_fault(int number) {
  fault = number;
}

void fail(const char* what) {
  throw std::runtime_error(
      std::string("cuda_emulation: ") + what + " (block " +
      std::to_string(blockIdx.x) + " " + std::to_string(blockIdx.y) + " " +
      std::to_string(blockIdx.z) + ", thread " + std::to_string(threadIdx.x) +
      ")");
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
  // Anew after a failure: some fibers never came to their end.
  if (fibers.size() != threads) {
    fibers = std::vector<Fiber>(threads);
  }
  program = &thread;
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        try {
          run_block();
        } catch (...) {
          fibers.clear();
          throw;
        }
      }
    }
  }
  return cudaSuccess;
}

} // namespace emulation
