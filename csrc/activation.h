// Activations and their derivatives, written once for every type that has arithmetic, comparisons and a ternary choice:
// float and double, on host and device, and the vectors of cpu/simd.h, where `mask ? a : b` chooses lane by lane.
//
// Each target brings exp and erf of its own. Comparisons are phrased such that NaN behaves as it does in PyTorch.
#pragma once

#include "shapes.h"

#ifdef __CUDACC__
#define FUSED_RESNET_HOST_DEVICE __host__ __device__
#else
#define FUSED_RESNET_HOST_DEVICE
#endif

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// act(z); S is the scalar type of V.
template <Activation A, class V, class S>
FUSED_RESNET_HOST_DEVICE inline V activate(V z, S negative_slope) {
  const V zero{};
  if constexpr (A == Activation::identity) {
    return z;
  } else if constexpr (A == Activation::relu) {
    return z < zero ? zero : z;
  } else if constexpr (A == Activation::leaky_relu) {
    return z > zero ? z : z * negative_slope;
  } else if constexpr (A == Activation::relu6) {
    const V six = zero + S(6), low = z < zero ? zero : z;
    return low > six ? six : low;
  } else if constexpr (A == Activation::silu) {
    return z / (exp(-z) + S(1));
  } else if constexpr (A == Activation::hardswish) {
    return z * activate<Activation::relu6>(z + S(3), negative_slope) * S(1.0 / 6);
  } else {
    static_assert(A == Activation::gelu);
    return z * S(0.5) * (erf(z * S(0.70710678118654752440)) + S(1));
  }
}

// act'(z)
template <Activation A, class V, class S>
FUSED_RESNET_HOST_DEVICE inline V activate_derivative(V z, S negative_slope) {
  const V zero{}, one = zero + S(1);
  if constexpr (A == Activation::identity) {
    return one;
  } else if constexpr (A == Activation::relu) {
    return z <= zero ? zero : one;
  } else if constexpr (A == Activation::leaky_relu) {
    return z > zero ? one : zero + negative_slope;
  } else if constexpr (A == Activation::relu6) {
    const V below = z <= zero ? zero : one;
    return z >= zero + S(6) ? zero : below;
  } else if constexpr (A == Activation::silu) {
    const V sigmoid = one / (exp(-z) + S(1));
    return sigmoid * (z * (one - sigmoid) + S(1));
  } else if constexpr (A == Activation::hardswish) {
    const V ramp = z * S(1.0 / 3) + S(0.5), above = z >= zero + S(3) ? one : ramp;
    return z <= zero - S(3) ? zero : above;
  } else {
    static_assert(A == Activation::gelu);
    const V cdf = erf(z * S(0.70710678118654752440)) * S(0.5) + S(0.5);
    return z * exp(z * z * S(-0.5)) * S(0.39894228040143267794) + cdf;  // 1 / sqrt(2 pi)
  }
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
