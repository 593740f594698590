// Warp collectives: every lane of the mask arrives, one combines for all.
#include <cstring>

#include "scheduler.h"

namespace cuda_on_cpu {

namespace {

void combine_barrier(Lane* const (&)[32], unsigned) {}

void combine_shuffle(Lane* const (&lanes)[32], unsigned mask) {
  for (int i = 0; i < 32; ++i) {
    if (!lanes[i]) continue;
    const int source = lanes[i]->argument & 31;
    if (!(mask >> source & 1)) {
      fail("%s:%d: %s: lane %d reads lane %d, which mask %08x leaves out", lanes[i]->file, lanes[i]->line,
           lanes[i]->collective, i, source, mask);
    }
    copy_unseen(lanes[i]->out, lanes[source]->in, lanes[i]->bytes);
  }
}

void combine_ballot(Lane* const (&lanes)[32], unsigned) {
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i) {
    if (lanes[i] && lanes[i]->in[0]) votes |= 1u << i;
  }
  for (Lane* lane : lanes) {
    if (lane) copy_unseen(lane->out, &votes, sizeof(votes));
  }
}

}  // namespace

void warp_collective(unsigned mask, const char* name, const char* file, int line, Combine combine, bool orders) {
  Thread* thread = current();
  if (!(mask >> thread->lane & 1)) {
    fail("%s:%d: %s: mask %08x leaves out its own lane %u", file, line, name, mask, thread->lane);
  }
  thread->mask = mask, thread->collective = name, thread->file = file, thread->line = line, thread->combine = combine;
  void* const place = warp_place(thread->warp);
  if (orders) happens_before(place);
  wait_in(State::at_warp_collective);
  if (orders) happens_after(place);
}

void warp_barrier(unsigned mask, const char* file, int line) {
  warp_collective(mask, "__syncwarp", file, line, combine_barrier, true);
}

void shuffle_bytes(unsigned mask, const void* in, void* out, unsigned bytes, int source, const char* name,
                   const char* file, int line) {
  self->argument = source, self->bytes = bytes;
  copy_unseen(self->in, in, bytes);
  warp_collective(mask, name, file, line, combine_shuffle, false);
  copy_unseen(out, self->out, bytes);
}

unsigned ballot(unsigned mask, bool predicate, const char* file, int line) {
  self->in[0] = predicate;
  warp_collective(mask, "__ballot_sync", file, line, combine_ballot, false);
  unsigned votes;
  copy_unseen(&votes, self->out, sizeof(votes));
  return votes;
}

// Release and acquire as in C++: two threads are ordered if one fences before an atomic, and the other after it.
void fence() {
  Thread* thread = current();
  for (unsigned i = 0; i < thread->atomic_count; ++i) happens_after(const_cast<void*>(thread->atomics[i]));
  thread->atomic_count = 0;
  thread->has_fenced = true;
}

void before_atomic(const void* address) {
  if (current()->has_fenced) happens_before(const_cast<void*>(address));
}

void after_atomic(const void* address) {
  Thread* thread = current();
  if (thread->atomic_count < Thread::kMaxAtomics) thread->atomics[thread->atomic_count++] = address;
}

}  // namespace cuda_on_cpu
