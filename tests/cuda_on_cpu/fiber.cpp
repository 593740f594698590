// Never compiled with -fsanitize=thread: the hand-over from fiber to fiber is no part of a kernel.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifdef CUDA_ON_CPU_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#ifdef CUDA_ON_CPU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {

namespace {

constexpr size_t kStackBytes = 256 << 10, kPageBytes = 4096;

// Of the scheduler, which every fiber returns to.
void* scheduler_stack_pointer;
[[maybe_unused]] void* scheduler_tsan;
[[maybe_unused]] void* scheduler_fake_stack;
[[maybe_unused]] const void* scheduler_stack;
[[maybe_unused]] size_t scheduler_stack_bytes;

}  // namespace

// Saves the registers that a callee must keep and the stack pointer, and goes on where `to` was saved.
extern "C" void cuda_on_cpu_switch(void** save, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.type cuda_on_cpu_switch,@function
cuda_on_cpu_switch:
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
.size cuda_on_cpu_switch,.-cuda_on_cpu_switch
)");
#else
#error "cuda_on_cpu_switch is written for x86-64 alone"
#endif

Fiber::~Fiber() {
  release();
  if (stack_) munmap(stack_, kStackBytes);
}

void Fiber::prepare(void (*entry)(), [[maybe_unused]] bool renew) {
#ifdef CUDA_ON_CPU_TSAN
  if (renew) release();
  if (!tsan_) {
    // A fresh mapping, or the last thread's use of this stack would look like a race with this one's.
    if (stack_) munmap(stack_, kStackBytes);
    stack_ = nullptr;
    tsan_ = __tsan_create_fiber(0);
  }
  scheduler_tsan = __tsan_get_current_fiber();
#endif
  if (!stack_) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* mapping = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    stack_ = static_cast<unsigned char*>(mapping);
    mprotect(stack_, kPageBytes, PROT_NONE);  // an overflow traps
  }
#ifdef CUDA_ON_CPU_ASAN
  ASAN_UNPOISON_MEMORY_REGION(stack_ + kPageBytes, kStackBytes - kPageBytes);
#endif
  fake_stack_ = nullptr;
  auto* top = reinterpret_cast<void**>(stack_ + kStackBytes) - 2;  // 16-byte aligned as after a call
  *top = reinterpret_cast<void*>(entry);
  stack_pointer_ = top - 6;  // the six registers, whatever they hold
}

void Fiber::resume() {
#ifdef CUDA_ON_CPU_TSAN
  __tsan_switch_to_fiber(tsan_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, stack_, kStackBytes);
#endif
  cuda_on_cpu_switch(&scheduler_stack_pointer, stack_pointer_);
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend([[maybe_unused]] bool ended) {
#ifdef CUDA_ON_CPU_TSAN
  __tsan_switch_to_fiber(scheduler_tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_start_switch_fiber(ended ? nullptr : &fake_stack_, scheduler_stack, scheduler_stack_bytes);
#endif
  cuda_on_cpu_switch(&stack_pointer_, scheduler_stack_pointer);
  arrived();
}

void Fiber::arrived() {
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_finish_switch_fiber(fake_stack_, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void Fiber::release() {
#ifdef CUDA_ON_CPU_TSAN
  if (tsan_) __tsan_destroy_fiber(tsan_);
  tsan_ = nullptr;
#endif
}

#ifdef CUDA_ON_CPU_TSAN
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
void happens_before(void* place) {
  __tsan_release(place);
}
void happens_after(void* place) {
  __tsan_acquire(place);
}
extern "C" void AnnotateIgnoreSyncBegin(const char* file, int line);
extern "C" void AnnotateIgnoreSyncEnd(const char* file, int line);
void UnseenMutex::lock() {
  AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
  mutex_.lock();
  AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
}
void UnseenMutex::unlock() {
  AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
  mutex_.unlock();
  AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
}
#else
void happens_before(void*) {}
void happens_after(void*) {}
void UnseenMutex::lock() {
  mutex_.lock();
}
void UnseenMutex::unlock() {
  mutex_.unlock();
}
#endif

}  // namespace cuda_on_cpu
