// From runtime types, layouts and alignments to template arguments, each in one place.
#pragma once

#include <type_traits>

#include "activations.h"
#include "columns.h"

namespace fused_resnet {

template <class T>
struct TypeTag {
  using type = T;
};

// Calls f(TypeTag<T>) for the type; cudaErrorInvalidValue for an unknown one.
template <class F>
cudaError_t visit_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32: return f(TypeTag<float>{});
    case DType::float64: return f(TypeTag<double>{});
    case DType::bfloat16: return f(TypeTag<__nv_bfloat16>{});
    case DType::float16: return f(TypeTag<__half>{});
  }
  return cudaErrorInvalidValue;
}

// Calls f(activation) with ReluOnly or AnyActivation; float64, there for gradcheck, has the latter alone.
template <class S, class F>
cudaError_t visit_activation(const ActivationArgs& a, const F& f) {
  if (a.kind < Activation::identity || a.kind > Activation::gelu) return cudaErrorInvalidValue;
  if constexpr (!std::is_same_v<S, double>) {
    if (a.kind == Activation::relu) return f(ReluOnly<S>(a));
  }
  return f(AnyActivation<S>(a));
}

// Whether packs of 16 bytes fit the view: float64 has scalar kernels alone.
template <class T>
bool fits_packs(const ChannelView& view) {
  const int64_t neighbours = view.inner == 1 ? view.channels : view.inner;
  return !std::is_same_v<T, double> && neighbours % kFullLanes<T> == 0;
}

// Calls f(Columns) with packs of 16 bytes where they fit the view and `aligned` says that all pointers allow them,
// else with single elements.
template <class T, class F>
cudaError_t visit_columns(const ChannelView& view, bool aligned, const F& f) {
  const bool packs = aligned && fits_packs<T>(view), channels_last = view.inner == 1;
  if constexpr (!std::is_same_v<T, double>) {
    if (packs && channels_last) return f(Columns<kFullLanes<T>, true>(view));
    if (packs) return f(Columns<kFullLanes<T>, false>(view));
  }
  return channels_last ? f(Columns<1, true>(view)) : f(Columns<1, false>(view));
}

}  // namespace fused_resnet
