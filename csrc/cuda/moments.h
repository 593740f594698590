// Mean and variance of elements that come one by one, and their union: Welford's recurrence (Welford 1962) and Chan's
// formula (Chan, Golub, LeVeque 1979, eq. 2.1). Nothing cancels, however large the mean. It is kept in two parts, a
// first element and the mean difference to it, so that where it dwarfs the deviation, its rounding does not count
// against that.
#pragma once

#include "cuda_compat.h"

namespace fused_resnet {

template <class S>
struct Moments {
  S count = 0, mean = 0, mean_low = 0;  // the mean is the sum of its parts
  S m2 = 0;                             // sum of squares about the mean

  // Element number `new_count`, whose reciprocal is given: many channels share it.
  __device__ __forceinline__ void push(S x, S new_count, S reciprocal) {
    if (count == 0) mean = x;
    const S difference = x - mean, delta = difference - mean_low;
    count = new_count;
    mean_low += delta * reciprocal;
    m2 += delta * (difference - mean_low);
  }

  __device__ __forceinline__ void add(const Moments& other) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    const S total = count + other.count, weight = other.count / total;
    const S delta = (other.mean - mean) + (other.mean_low - mean_low);
    m2 += other.m2 + delta * delta * count * weight;
    count = total;
    // The two parts again, and nothing lost: Knuth's two-sum.
    const S low = mean_low + delta * weight, sum = mean + low, rounded = sum - mean;
    mean_low = (mean - (sum - rounded)) + (low - rounded);
    mean = sum;
  }
};

}  // namespace fused_resnet
