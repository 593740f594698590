// What is applied to an operand between its arrival in shared memory and the product: norm and activation of x, the
// statistics' share of a gradient. Every thread works on the chunks that it copied itself, so no barrier is needed
// before; and it knows which are padding, so those stay zero, as they must: padding comes after the activation.
#pragma once

#include "conv_params.h"
#include "conv_traits.h"

namespace fused_resnet {
namespace conv {

// v becomes scale (v - mean) + offset: centred first, as exact where the mean dwarfs the deviation.
template <int n>
struct ChannelTerms {
  float mean[n], scale[n], offset[n];

  __device__ __forceinline__ float apply(int i, float v) const { return fmaf(v - mean[i], scale[i], offset[i]); }
};

template <class Traits>
__device__ __forceinline__ void load_norm(const NormAct& norm, int channel, int valid,
                                          ChannelTerms<Traits::kChunk>& terms) {
  float var[Traits::kChunk];
  load_channels<Traits::kVector>(norm.mean, channel, valid, 0.f, terms.mean);
  load_channels<Traits::kVector>(norm.weight, channel, valid, 1.f, terms.scale);
  load_channels<Traits::kVector>(norm.bias, channel, valid, 0.f, terms.offset);
  if (norm.mean == nullptr) return;
  load_channels<Traits::kVector>(norm.var, channel, valid, 1.f, var);
#pragma unroll
  for (int i = 0; i < Traits::kChunk; ++i) terms.scale[i] *= rsqrtf(var[i] + norm.eps);
}

// g = g_y + offset + scale (y - mean)
template <class Traits>
__device__ __forceinline__ void load_gradient(const GradientTerms& gradient, int channel, int valid,
                                              ChannelTerms<Traits::kChunk>& terms) {
  load_channels<Traits::kVector>(gradient.y_mean, channel, valid, 0.f, terms.mean);
  load_channels<Traits::kVector>(gradient.g_var, channel, valid, 0.f, terms.scale);
  load_channels<Traits::kVector>(gradient.g_mean, channel, valid, 0.f, terms.offset);
#pragma unroll
  for (int i = 0; i < Traits::kChunk; ++i) {
    terms.scale[i] *= 2.f * gradient.per_pixel;
    terms.offset[i] *= gradient.per_pixel;
  }
}

__device__ __forceinline__ bool is_needed(const NormAct& norm) {
  return norm.mean != nullptr || norm.act.kind != Activation::identity;
}

// chunk = act(norm(chunk)), elements beyond `valid` zero
template <class Traits>
__device__ __forceinline__ void norm_act_chunk(const NormAct& norm, const ChannelTerms<Traits::kChunk>& terms,
                                               int valid, uint4* chunk) {
  using T = typename Traits::T;
  if (valid <= 0) return;
  float v[Traits::kChunk];
  unpack<T>(*chunk, v);
  norm.act.visit([&](auto act, float slope) {
#pragma unroll
    for (int i = 0; i < Traits::kChunk; ++i) v[i] = act.forward(terms.apply(i, v[i]), slope);
  });
  if constexpr (!Traits::kVector) {
#pragma unroll
    for (int i = 0; i < Traits::kChunk; ++i) v[i] = i < valid ? v[i] : 0.f;
  }
  *chunk = pack<T>(v);
}

// chunk = chunk + offset + scale (y - mean), elements beyond `valid` zero
template <class Traits>
__device__ __forceinline__ void gradient_chunk(const ChannelTerms<Traits::kChunk>& terms, int valid, uint4* chunk,
                                               const uint4* y_chunk) {
  using T = typename Traits::T;
  if (valid <= 0) return;
  float g[Traits::kChunk], y[Traits::kChunk];
  unpack<T>(*chunk, g);
  unpack<T>(*y_chunk, y);
#pragma unroll
  for (int i = 0; i < Traits::kChunk; ++i) {
    g[i] += terms.apply(i, y[i]);
    if (!Traits::kVector && i >= valid) g[i] = 0.f;
  }
  *chunk = pack<T>(g);
}

}  // namespace conv
}  // namespace fused_resnet
