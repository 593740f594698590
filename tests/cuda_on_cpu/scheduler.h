// The runtime's own view of a running grid, shared by its files.
#pragma once

#include <vector>

#include "cuda_on_cpu.h"
#include "fiber.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace cuda_on_cpu {

enum class State : unsigned char { ready, at_block_barrier, at_warp_collective, ended, failed };

// An asynchronous copy on its way to shared memory.
struct Copy {
  void* shared;
  const void* global;
  unsigned bytes, valid_bytes;
};

struct Thread : Lane {
  static constexpr unsigned kMaxCopies = 256, kMaxGroups = 32, kMaxAtomics = 16;

  State state;
  Fiber fiber;
  int barrier_site;
  Combine combine;
  // Fixed arrays: memory of the allocator's, used by one block after the other, would look like a race to TSan.
  Copy copies[kMaxCopies];
  unsigned copy_count, group_ends[kMaxGroups], group_count;
  bool has_fenced;
  const void* atomics[kMaxAtomics];  // since the last fence
  unsigned atomic_count;
};

// What the launches did since a test cleared it: see work.py.
struct Work {
  uint64_t products;      // mma.sync, one a warp
  uint64_t bytes_copied;  // by cp.async, from device memory
  uint64_t bytes_of_zeros;
};

extern "C" Work cuda_on_cpu_work;

inline Thread* current() {
  return static_cast<Thread*>(self);
}

// Gives the processor back until the scheduler resumes this thread in State::ready.
void wait_in(State);

// Shared memory of the block about to run, and its end. `poison` is the byte that nobody has written yet.
void begin_shared(size_t dynamic_bytes, size_t limit_bytes, unsigned char poison);
void end_shared();
void end_grid_shared();  // what TSan builds keep until then

// As memcpy and memset, which the sanitizers would take for accesses of the kernel's.
void copy_unseen(void* to, const void* from, size_t bytes);
void fill_unseen(void* to, unsigned char value, size_t bytes);

// Places where threads meet next: TSan's happens-before addresses, fresh for each block.
void* block_place();
void* warp_place(unsigned warp);

}  // namespace cuda_on_cpu
