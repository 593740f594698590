// The team of parallel.h in threads of the standard library, for ThreadSanitizer: GCC's OpenMP runtime is not
// instrumented, so that what it orders would be reported as races.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

class Team {
 public:
  explicit Team(int size) : size_(size) {}

  // Calls f(part) for each part on a thread of its own, the first on the caller's.
  template <class F>
  void run(const F& f) {
    std::vector<std::thread> others;
    for (int part = 1; part < size_; ++part)
      others.emplace_back([this, part, &f] {
        current = this;
        f(part);
      });
    current = this;
    f(0);
    for (std::thread& other : others) other.join();
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t phase = phase_;
    if (++waiting_ < size_) return all_are_here_.wait(lock, [&] { return phase_ != phase; });
    waiting_ = 0;
    ++phase_;
    all_are_here_.notify_all();
  }

  static inline thread_local Team* current = nullptr;

 private:
  int size_, waiting_ = 0;
  int64_t phase_ = 0;
  std::mutex mutex_;
  std::condition_variable all_are_here_;
};

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
