// From a runtime type or activation to a template argument, each in one place.
#pragma once

#include <stdexcept>

#include "vector_math.h"

// After vector_math.h, whose exp and erf it calls.
#include "../activation.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

template <class T>
struct TypeTag {
  using type = T;
};
template <Activation A>
struct ActivationTag {
  static constexpr Activation value = A;
};

template <class F>
inline void visit_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32: return f(TypeTag<float>{});
    case DType::float64: return f(TypeTag<double>{});
    case DType::bfloat16: return f(TypeTag<BFloat16>{});
    case DType::float16: return f(TypeTag<Float16>{});
  }
  throw std::invalid_argument("unknown dtype");
}

template <class F>
inline void visit_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::identity: return f(ActivationTag<Activation::identity>{});
    case Activation::relu: return f(ActivationTag<Activation::relu>{});
    case Activation::leaky_relu: return f(ActivationTag<Activation::leaky_relu>{});
    case Activation::relu6: return f(ActivationTag<Activation::relu6>{});
    case Activation::silu: return f(ActivationTag<Activation::silu>{});
    case Activation::hardswish: return f(ActivationTag<Activation::hardswish>{});
    case Activation::gelu: return f(ActivationTag<Activation::gelu>{});
  }
  throw std::invalid_argument("unknown activation");
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
