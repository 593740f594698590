// A batch norm made ready for a kernel, and the gradients of its vectors from two channel sums.
#pragma once

#include <cmath>

#include "../shapes.h"
#include "parallel.h"
#include "simd.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// A batch norm for one vector of channels, or for one channel in every lane.
template <class S>
struct NormVector {
  Vector<S> mean, scale, bias;

  // Subtracting first is as accurate as it gets where the mean dwarfs the deviation.
  Vector<S> operator()(Vector<S> x) const { return (x - mean) * scale + bias; }
};

// An affine map of each channel, (x - mean) scale + bias, padded with zeros to whole registers.
template <class S>
class Norm {
 public:
  // scale(c) and bias(c) give the vectors' elements; mean null is 0.
  template <class Scale, class Bias>
  Norm(int64_t channels, const void* mean, const Scale& scale, const Bias& bias)
      : channels_(channels), padded_(skewed(channels)), data_(3 * padded_) {
    for (int64_t c = 0; c < channels; ++c) {
      data_.get()[c] = mean ? static_cast<const S*>(mean)[c] : S(0);
      data_.get()[padded_ + c] = scale(c);
      data_.get()[2 * padded_ + c] = bias(c);
    }
  }

  // A batch norm; where there is none, the identity.
  Norm(int64_t channels, const BatchNormArgs& bn)
      : Norm(
            channels, bn.mean,
            [&](int64_t c) {
              if (!bn.mean) return S(1);
              const S weight = bn.weight ? static_cast<const S*>(bn.weight)[c] : S(1);
              return weight / std::sqrt(static_cast<const S*>(bn.var)[c] + static_cast<S>(bn.eps));
            },
            [&](int64_t c) { return bn.mean && bn.bias ? static_cast<const S*>(bn.bias)[c] : S(0); }) {}

  // Channels c, c + 1, ... in the lanes.
  NormVector<S> channels_from(int64_t c) const {
    const S* p = data_.get() + c;
    return {load(p), load(p + padded_), load(p + 2 * padded_)};
  }
  // Channel c in every lane.
  NormVector<S> channel(int64_t c) const {
    const S* p = data_.get() + c;
    return {broadcast(p[0]), broadcast(p[padded_]), broadcast(p[2 * padded_])};
  }

  // From s = sum p and t = sum p (x - mean): the gradients of (mean, var, weight, bias), [4, C].
  void gradients(const BatchNormArgs& bn, const double* s, const double* t, S* out) const {
    const auto* var = static_cast<const S*>(bn.var);
    for (int64_t c = 0; c < channels_; ++c) {
      const double scale = data_.get()[padded_ + c], invstd = 1 / std::sqrt(double(var[c]) + bn.eps);
      out[c] = static_cast<S>(-scale * s[c]);
      out[channels_ + c] = static_cast<S>(-0.5 * scale * invstd * invstd * t[c]);
      out[2 * channels_ + c] = static_cast<S>(invstd * t[c]);
      out[3 * channels_ + c] = static_cast<S>(s[c]);
    }
  }

 private:
  // Whole registers, and two cache lines more: vectors a multiple of 4 KiB apart would share one set of L1.
  static int64_t skewed(int64_t n) { return (n + 63) / 64 * 64 + 32; }

  int64_t channels_, padded_;
  Scratch<S> data_;
};

// What statistics over `rows` pixels add to the gradient of their tensor y: g_mean / m + 2 g_var (y - y_mean) / m. Zero
// where g_mean is null.
template <class S>
Norm<S> statistics_gradient(int64_t rows, int64_t channels, const void* y_mean, const void* g_mean, const void* g_var) {
  const S each = S(1) / S(rows > 0 ? rows : 1);
  return {channels, y_mean, [=](int64_t c) { return g_var ? 2 * each * static_cast<const S*>(g_var)[c] : S(0); },
          [=](int64_t c) { return g_mean ? each * static_cast<const S*>(g_mean)[c] : S(0); }};
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
