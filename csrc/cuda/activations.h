// csrc/activation.h for the lanes of a pack. ReLU is compiled on its own; the others are chosen at run time, which
// costs a kernel that waits for memory nothing, and spares six copies of each.
#pragma once

#include "types.h"

namespace fused_resnet {
using std::erf;
using std::exp;
}  // namespace fused_resnet

// After types.h, whose exp and erf it calls.
#include "../activation.h"

namespace fused_resnet {

template <Activation A>
struct FixedActivation {
  template <class S>
  __device__ __forceinline__ static S forward(S z, S slope) {
    return activate<A>(z, slope);
  }
  template <class S>
  __device__ __forceinline__ static S derivative(S z, S slope) {
    return activate_derivative<A>(z, slope);
  }
};

template <class S>
struct ReluOnly {
  static constexpr bool kIsRelu = true;

  explicit ReluOnly(const ActivationArgs&) {}

  // Calls f with a FixedActivation and the negative slope.
  template <class F>
  __device__ __forceinline__ void visit(const F& f) const {
    f(FixedActivation<Activation::relu>{}, S(0));
  }
};

template <class S>
struct AnyActivation {
  static constexpr bool kIsRelu = false;

  Activation kind;
  S slope;

  explicit AnyActivation(const ActivationArgs& a) : kind(a.kind), slope(static_cast<S>(a.negative_slope)) {}

  template <class F>
  __device__ __forceinline__ void visit(const F& f) const {
    switch (kind) {
      case Activation::identity: return f(FixedActivation<Activation::identity>{}, slope);
      case Activation::relu: return f(FixedActivation<Activation::relu>{}, slope);
      case Activation::leaky_relu: return f(FixedActivation<Activation::leaky_relu>{}, slope);
      case Activation::relu6: return f(FixedActivation<Activation::relu6>{}, slope);
      case Activation::silu: return f(FixedActivation<Activation::silu>{}, slope);
      case Activation::hardswish: return f(FixedActivation<Activation::hardswish>{}, slope);
      case Activation::gelu: return f(FixedActivation<Activation::gelu>{}, slope);
    }
  }
};

// z = act(z)
template <class Act, class S, int kLanes>
__device__ __forceinline__ void activate_lanes(const Act& act, S (&z)[kLanes]) {
  act.visit([&](auto fixed, S slope) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) z[i] = fixed.forward(z[i], slope);
  });
}

// g = g act'(z)
template <class Act, class S, int kLanes>
__device__ __forceinline__ void activate_backward_lanes(const Act& act, const S (&z)[kLanes], S (&g)[kLanes]) {
  act.visit([&](auto fixed, S slope) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) g[i] *= fixed.derivative(z[i], slope);
  });
}

}  // namespace fused_resnet
