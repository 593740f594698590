// Shared memory, fresh and poisoned for each block, and the asynchronous copies to it. In a build with
// CUDA_ON_CPU_SHADOW the kernels report each load and store, and a load of a byte that nobody wrote ends the launch.
#include <cstring>
#include <memory>

#include "scheduler.h"

#ifdef CUDA_ON_CPU_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace cuda_on_cpu {

namespace {

constexpr size_t kStaticLimitBytes = 48 << 10, kAlignment = 128;
constexpr size_t kGap = 128;  // poisoned between two arrays, and after the last

// A block's shared memory: dynamic at its end, so that the byte after it is out of bounds.
struct Arena {
  std::unique_ptr<unsigned char[]> memory;
  unsigned char* begin;
  size_t bytes;
  std::unique_ptr<bool[]> is_written;  // of each byte
};

struct Slot {
  const void* key;
  unsigned char* data;
};

Arena static_arena, dynamic_arena;
std::vector<Arena> kept;  // TSan: memory given to the next block would look like a race
Slot slots[32];           // not a vector: see Thread
size_t slot_count, static_used, static_bytes, dynamic_bytes, limit_bytes;
unsigned char poison;

Arena allocate(size_t bytes) {
  Arena arena{std::unique_ptr<unsigned char[]>(new unsigned char[bytes + kAlignment]), nullptr, bytes, nullptr};
  const auto address = reinterpret_cast<uintptr_t>(arena.memory.get());
  arena.begin = arena.memory.get() + (kAlignment - address % kAlignment) % kAlignment;
#ifdef CUDA_ON_CPU_SHADOW
  arena.is_written.reset(new bool[bytes]());
#endif
  return arena;
}

void forbid([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#ifdef CUDA_ON_CPU_ASAN
  ASAN_POISON_MEMORY_REGION(p, bytes);
#endif
}

void allow([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#ifdef CUDA_ON_CPU_ASAN
  ASAN_UNPOISON_MEMORY_REGION(p, bytes);
#endif
}

void drop(Arena& arena) {
  if (!arena.memory) return;
  allow(arena.begin, arena.bytes);
#ifdef CUDA_ON_CPU_TSAN
  kept.push_back(std::move(arena));
#endif
  arena = {};
}

// The shadow of a place in shared memory; null of any other. Called by kernels at each access: no template of the
// library's here, whose code may be the kernels' instrumented one.
bool* shadow(const void* p) {
  for (const Arena* arena : {&static_arena, &dynamic_arena}) {
    const size_t offset = static_cast<const unsigned char*>(p) - arena->begin;
    if (arena->is_written && offset < arena->bytes) return arena->is_written.get() + offset;
  }
  return nullptr;
}

void mark(const void* p, size_t bytes, bool is_written) {
  if (bool* at = shadow(p)) std::memset(at, is_written, bytes);
}

}  // namespace

// volatile: a compiler would make memcpy of these loops, which TSan intercepts.
void copy_unseen(void* to, const void* from, size_t bytes) {
  auto* out = static_cast<volatile unsigned char*>(to);
  const auto* in = static_cast<const volatile unsigned char*>(from);
  for (size_t i = 0; i < bytes; ++i) out[i] = in[i];
}

void fill_unseen(void* to, unsigned char value, size_t bytes) {
  auto* out = static_cast<volatile unsigned char*>(to);
  for (size_t i = 0; i < bytes; ++i) out[i] = value;
}

void check_aligned(const void* p, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) fail("misaligned %s of %zu bytes", what, bytes);
}

void begin_shared(size_t dynamic, size_t limit, unsigned char poison_byte) {
  poison = poison_byte;
  slot_count = static_used = static_bytes = 0;
  dynamic_bytes = dynamic, limit_bytes = limit;
  static_arena = allocate(kStaticLimitBytes + kGap * 32);
  forbid(static_arena.begin, kStaticLimitBytes + kGap * 32);
  dynamic_arena = allocate(dynamic + kGap);
  fill_unseen(dynamic_arena.begin, poison, dynamic);
  forbid(dynamic_arena.begin + dynamic, kGap);
}

void end_shared() {
  drop(static_arena);
  drop(dynamic_arena);
}

void end_grid_shared() {
  kept.clear();
}

void* static_shared(const void* key, size_t bytes) {
  for (size_t i = 0; i < slot_count; ++i) {
    if (slots[i].key == key) return slots[i].data;
  }
  static_bytes += (bytes + 15) / 16 * 16;
  if (static_bytes > kStaticLimitBytes || slot_count == 32) fail("more than 48 KiB of static shared memory");
  if (static_bytes + dynamic_bytes > limit_bytes) {
    fail("expected at most %zu bytes of shared memory, got %zu", limit_bytes, static_bytes + dynamic_bytes);
  }
  unsigned char* data = static_arena.begin + static_used;
  static_used += (bytes + 15) / 16 * 16 + kGap;
  allow(data, bytes);
  fill_unseen(data, poison, bytes);
  slots[slot_count++] = {key, data};
  return data;
}

void* dynamic_shared() {
  if (!dynamic_bytes) fail("dynamic shared memory is used, but the launch asks for none");
  return dynamic_arena.begin;
}

void cp_async(void* shared, const void* global, unsigned bytes, unsigned valid_bytes) {
  check_aligned(shared, bytes, "cp.async to shared memory");
  if (valid_bytes) check_aligned(global, bytes, "cp.async from global memory");
  if (valid_bytes > bytes) fail("cp.async of %u valid bytes out of %u", valid_bytes, bytes);
  Thread* thread = current();
  if (thread->copy_count == Thread::kMaxCopies)
    fail("more than %u cp.async under way in one thread", thread->kMaxCopies);
  thread->copies[thread->copy_count++] = {shared, global, bytes, valid_bytes};
  cuda_on_cpu_work.bytes_copied += valid_bytes;
  cuda_on_cpu_work.bytes_of_zeros += bytes - valid_bytes;
  // Undefined until waited for. memset is seen by the sanitizers: a write here, another where the copy lands.
  std::memset(shared, 0xff, bytes);
  mark(shared, bytes, false);
}

void cp_async_commit() {
  Thread* thread = current();
  if (thread->group_count == Thread::kMaxGroups) fail("more than %u cp.async groups under way", thread->kMaxGroups);
  thread->group_ends[thread->group_count++] = thread->copy_count;
}

void cp_async_wait(unsigned pending) {
  Thread* thread = current();
  if (thread->group_count <= pending) return;
  const unsigned groups = thread->group_count - pending, copies = thread->group_ends[groups - 1];
  for (unsigned i = 0; i < copies; ++i) {
    const Copy& copy = thread->copies[i];
    std::memcpy(copy.shared, copy.global, copy.valid_bytes);
    std::memset(static_cast<unsigned char*>(copy.shared) + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
    mark(copy.shared, copy.bytes, true);
  }
  for (unsigned i = copies; i < thread->copy_count; ++i) thread->copies[i - copies] = thread->copies[i];
  for (unsigned i = groups; i < thread->group_count; ++i)
    thread->group_ends[i - groups] = thread->group_ends[i] - copies;
  thread->copy_count -= copies;
  thread->group_count -= groups;
}

#ifdef CUDA_ON_CPU_SHADOW
namespace {

void check_written(const void* p, size_t bytes) {
  const bool* at = shadow(p);
  if (!at) return;
  for (size_t i = 0; i < bytes; ++i) {
    if (!at[i]) fail("a load of %zu bytes of shared memory, of which nobody wrote byte %zu", bytes, i);
  }
}

}  // namespace

// What GCC calls at each access of a kernel under -fsanitize=kernel-address, which brings no runtime of its own.
#define CUDA_ON_CPU_ACCESS(bytes)                               \
  extern "C" void __asan_load##bytes##_noabort(const void* p) { \
    check_written(p, bytes);                                    \
  }                                                             \
  extern "C" void __asan_store##bytes##_noabort(void* p) {      \
    mark(p, bytes, true);                                       \
  }
CUDA_ON_CPU_ACCESS(1)
CUDA_ON_CPU_ACCESS(2)
CUDA_ON_CPU_ACCESS(4)
CUDA_ON_CPU_ACCESS(8)
CUDA_ON_CPU_ACCESS(16)
extern "C" void __asan_loadN_noabort(const void* p, size_t bytes) {
  check_written(p, bytes);
}
extern "C" void __asan_storeN_noabort(void* p, size_t bytes) {
  mark(p, bytes, true);
}
extern "C" void __asan_handle_no_return() {}
#endif

}  // namespace cuda_on_cpu
