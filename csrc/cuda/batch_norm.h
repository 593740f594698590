// A batch norm as kernels read it: norm(x) = scale (x - mean) + bias, scale = weight / sqrt(var + eps), and the
// gradients of its four vectors from the sums over a channel.
#pragma once

#include "types.h"

namespace fused_resnet {

template <class S>
struct ChannelNorm {
  S mean = 0, scale = 1, bias = 0;

  __device__ __forceinline__ S operator()(S x) const { return fma(x - mean, scale, bias); }
};

template <class S>
struct Norm {
  const S* mean;    // [C], null: no batch norm, the identity
  const S* var;     // [C]
  const S* weight;  // [C] or null
  const S* bias;    // [C] or null
  S eps;

  explicit Norm(const BatchNormArgs& a)
      : mean(static_cast<const S*>(a.mean)),
        var(static_cast<const S*>(a.var)),
        weight(static_cast<const S*>(a.weight)),
        bias(static_cast<const S*>(a.bias)),
        eps(static_cast<S>(a.eps)) {}

  __device__ __forceinline__ S invstd(int64_t channel) const { return S(1) / sqrt(var[channel] + eps); }

  template <int kChannels>
  __device__ __forceinline__ void load(int64_t channel, ChannelNorm<S> (&norm)[kChannels]) const {
    if (mean == nullptr) return;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const S scale = weight ? weight[channel + i] * invstd(channel + i) : invstd(channel + i);
      norm[i] = {mean[channel + i], scale, bias ? bias[channel + i] : S(0)};
    }
  }

  // With s = sum p and t = sum p (x - mean): the gradients of mean, var, weight and bias, to g[4, channels].
  __device__ __forceinline__ void store_gradients(S* g, int64_t channels, int64_t channel, S s, S t) const {
    const S inverse = invstd(channel), scale = weight ? weight[channel] * inverse : inverse;
    g[channel] = -scale * s;
    g[channels + channel] = S(-0.5) * scale * inverse * inverse * t;
    g[2 * channels + channel] = inverse * t;
    g[3 * channels + channel] = s;
  }
};

// The norms of a sum norm(x) + residual_norm(residual). Both biases go to the first: a register less for each channel.
template <class S, int kChannels>
__device__ __forceinline__ void load_norms_of_sum(const Norm<S>& bn, const Norm<S>& residual_bn, int64_t channel,
                                                  ChannelNorm<S> (&norm)[kChannels],
                                                  ChannelNorm<S> (&residual_norm)[kChannels]) {
  bn.load(channel, norm);
  residual_bn.load(channel, residual_norm);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    norm[c].bias += residual_norm[c].bias;
    residual_norm[c].bias = 0;
  }
}

}  // namespace fused_resnet
