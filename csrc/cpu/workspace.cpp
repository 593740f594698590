#include "workspace.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace fused_resnet {

namespace {

constexpr size_t kHugePage = size_t{1} << 21;

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;

  void release() {
    std::free(data);
    data = nullptr;
    bytes = 0;
  }
  ~Buffer() { release(); }
};

thread_local Buffer buffers[static_cast<int>(Slot::count)];

}  // namespace

void* workspace(Slot slot, size_t bytes) {
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (buffer.bytes < bytes) {
    buffer.release();  // before the larger one is taken
    const size_t alignment = bytes < kHugePage ? 4096 : kHugePage;
    const size_t size = (bytes + alignment - 1) / alignment * alignment;
    buffer.data = std::aligned_alloc(alignment, size);
    if (!buffer.data) throw std::bad_alloc();
    if (alignment == kHugePage) advise_huge_pages(buffer.data, size);
    // Products read the unused rows of a partly filled tile too. What the heap left there may be denormal numbers, each
    // of which takes some processors 150 cycles.
    std::memset(buffer.data, 0, size);
    buffer.bytes = size;
  }
  return buffer.data;
}

void advise_huge_pages(void* data, size_t bytes) {
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

size_t workspace_bytes() {
  size_t total = 0;
  for (const Buffer& buffer : buffers) total += buffer.bytes;
  return total;
}

void free_workspace() {
  for (Buffer& buffer : buffers) buffer.release();
}

}  // namespace fused_resnet
