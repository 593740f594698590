// Working memory of the convolution engine: a few buffers for each calling thread, which grow to what the largest layer
// so far needs and stay. glibc would give blocks of this size back to the system, and to fault their pages in again
// costs more than to write them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_resnet {

// What a buffer is for; an operation uses each at most once at a time.
enum class Slot : int { filters, strips, tiles, gradients, products, sums, rows, values, count };

// At least `bytes` of uninitialised memory, aligned to a page, valid until the next call for this slot in this thread.
void* workspace(Slot slot, size_t bytes);

template <class S>
S* workspace(Slot slot, int64_t elements) {
  return static_cast<S*>(workspace(slot, static_cast<size_t>(elements) * sizeof(S)));
}

// Asks for huge pages under a block of memory that is about to be written for the first time. glibc maps a large block
// anew each time it is allocated; 512 pages of 4 KiB cost several times as much to fault in as one of 2 MiB. No
// promise: the system may not have them.
void advise_huge_pages(void* data, size_t bytes);

// Bytes held by the calling thread.
size_t workspace_bytes();

// Gives back all of the calling thread's buffers.
void free_workspace();

}  // namespace fused_resnet
