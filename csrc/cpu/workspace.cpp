#include "workspace.h"

#include <sys/mman.h>

#include <cstdlib>
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
    if (alignment == kHugePage) madvise(buffer.data, size, MADV_HUGEPAGE);  // fewer misses of the TLB; may be refused
    buffer.bytes = size;
  }
  return buffer.data;
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
