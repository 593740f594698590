// How many multiplications and additions the processor can do at most: the roof that convolutions are measured against.
#include <chrono>

#include "dispatch.h"
#include "gemm.h"
#include "launchers.h"
#include "parallel.h"

// Keeps a vector in a register, and what computes it from being left out.
#if defined(__x86_64__)
#define FUSED_RESNET_KEEP(v) asm volatile("" : "+x"(v))
#else
#define FUSED_RESNET_KEEP(v) asm volatile("" : "+w"(v))
#endif

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

double multiply_add_peak(DType dtype, int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr int kSums = 12;  // more than latency times units: no multiplication waits for another
  constexpr int64_t kRepeats = 100000;
  double per_second = 0;
  const auto measure = [&](auto number) {
    using S = decltype(number);
    const auto begin = Clock::now();
    Scratch<double> rates(threads);
    parallel(threads, [&](int part, int) {
      Vector<S> sums[kSums] = {};
      const Vector<S> factor = broadcast(S(0.5)), term = broadcast(S(1));
      int64_t repeats = 0;
      double elapsed = 0;
      for (; elapsed < seconds; repeats += kRepeats) {
        for (int64_t i = 0; i < kRepeats; ++i) {
#pragma GCC unroll 12
          for (int n = 0; n < kSums; ++n) sums[n] = sums[n] * factor + term;
#pragma GCC unroll 12
          for (int n = 0; n < kSums; ++n) FUSED_RESNET_KEEP(sums[n]);
        }
        elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
      }
      rates.get()[part] = 2.0 * kSums * kLanes<S> * static_cast<double>(repeats) / elapsed;
    });
    for (int i = 0; i < threads; ++i) per_second += rates.get()[i];
  };
  dtype == DType::float64 ? measure(double{}) : measure(float{});
  return per_second;
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
