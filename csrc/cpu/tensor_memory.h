// Memory of large tensors, which stays here when they are freed. glibc gives blocks of this size back to the system,
// which clears them when they come again: in training on default settings that took half of all time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_resnet {

// A block of uninitialised memory, aligned to a page, in huge pages where the system has them; nullptr where it gives
// none. Never a zero size. From any thread, as all functions here.
void* allocate_tensor(size_t bytes);

// The block is free for the next tensor.
void free_tensor(void* data);

// Bytes of memory in tensors that live, and in those that were freed.
struct TensorMemory {
  size_t used, kept;
};
TensorMemory tensor_memory();

// Gives the memory of freed tensors back to the system.
void free_kept_memory();

// c10::memoryProfilingEnabled and c10::reportMemoryUsageToProfiler of the torch in this process: with them
// torch.profiler sees these blocks as it sees those of torch's own allocator.
struct Device {
  int8_t type = 0, index = -1;  // CPU
};
struct MemoryProfiler {
  bool (*is_enabled)();
  void (*report)(void* data, int64_t change, size_t used, size_t reserved, Device);
};
void set_memory_profiler(MemoryProfiler);

}  // namespace fused_resnet
