// A stack of its own that the scheduler resumes and that suspends itself, known to the sanitizers.
#pragma once

#include <cstddef>
#include <mutex>

namespace cuda_on_cpu {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // The next resume() calls `entry` on an empty stack; `entry` ends with suspend(true). To TSan it is the same thread
  // as when it was last prepared, unless `renew`.
  void prepare(void (*entry)(), bool renew);
  void resume();             // from the scheduler
  void suspend(bool ended);  // from the fiber
  void arrived();            // the first call in `entry`
  void release();            // where it is given up before its end

 private:
  void* stack_pointer_ = nullptr;
  unsigned char* stack_ = nullptr;
  void* tsan_ = nullptr;
  void* fake_stack_ = nullptr;
};

// What ThreadSanitizer is told of the order of threads; nothing in other builds. The address stands for a meeting
// place.
void happens_before(void* place);
void happens_after(void* place);

// A lock that tells TSan of no order: host threads that take turns here ran at once, as far as it knows.
class UnseenMutex {
 public:
  void lock();
  void unlock();

 private:
  std::mutex mutex_;
};

}  // namespace cuda_on_cpu
