// Threads, and memory that lasts for one call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "simd.h"

#if defined(__SANITIZE_THREAD__)
#include "standard_threads.h"
#else
#include <omp.h>
#endif

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

struct Range {
  int64_t begin, end;
};

// The share of one of `parts` of `total` items, in order, as even as can be.
inline Range share(int64_t total, int part, int parts) {
  const int64_t each = total / parts, rest = total % parts;
  const int64_t begin = part * each + (part < rest ? part : rest);
  return {begin, begin + each + (part < rest ? 1 : 0)};
}

// Threads worth waking for this many elements; a function of the size alone, so that sums keep their order.
inline int threads_for(int64_t elements, int threads) {
  constexpr int64_t kGrain = 16384;
  const int64_t useful = (elements + kGrain - 1) / kGrain;
  return static_cast<int>(useful < 1 ? 1 : useful < threads ? useful : threads);
}

// Calls f(part, parts) on each of up to `threads` threads. What they have streamed is visible afterwards.
template <class F>
inline void parallel(int threads, const F& f) {
  if (threads <= 1) {
    f(0, 1);
    return fence();
  }
#if defined(__SANITIZE_THREAD__)
  Team(threads).run([&](int part) { f(part, threads); });
#else
#pragma omp parallel num_threads(threads)
  {
    f(omp_get_thread_num(), omp_get_num_threads());
    fence();
  }
#endif
}

// Waits for the other threads of the same parallel().
inline void barrier(int parts) {
  if (parts <= 1) return;
#if defined(__SANITIZE_THREAD__)
  Team::current->wait();
#else
#pragma omp barrier
#endif
}

// Threads that work on one thing together: all of them, or each alone.
struct Crew {
  int number, crews;    // which of how many
  int member, members;  // of this one

  static Crew of(int part, int parts, bool is_alone) {
    return is_alone ? Crew{part, parts, 0, 1} : Crew{0, 1, part, parts};
  }

  Range share_of_crew(int64_t total) const { return share(total, number, crews); }
  Range share_of_member(int64_t total) const { return share(total, member, members); }
  // Waits for the other members.
  void wait() const { barrier(members); }
};

// Calls f(part, item) for every item, a stretch of them on each thread.
template <class F>
inline void for_each(int64_t items, int threads, const F& f) {
  parallel(threads, [&](int part, int parts) {
    const Range range = share(items, part, parts);
    for (int64_t item = range.begin; item < range.end; ++item) f(part, item);
  });
}

// Zeroed memory, aligned to a cache line, freed at the end of its scope.
template <class S>
class Scratch {
 public:
  explicit Scratch(int64_t n) {
    const size_t bytes = (static_cast<size_t>(n) * sizeof(S) + 63) / 64 * 64;
    data_ = static_cast<S*>(std::aligned_alloc(64, bytes ? bytes : 64));
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  S* get() const { return data_; }

 private:
  S* data_;
};

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
