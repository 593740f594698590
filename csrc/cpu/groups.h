// Groups of 1, 2, 4 or 8 channels, as many out as in, with channels as lanes. Channels p and p ^ j of a group meet for
// each j: where a register holds a whole group, by an exchange of lanes, else by another register.
#pragma once

#include <stdexcept>
#include <utility>

#include "gather.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// Vector registers of the instruction set.
#if FUSED_RESNET_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// A strip for them: register by register of channels, so that neighbouring pixels are neighbours.
template <class S>
SuperGroups registers_of(int64_t channels) {
  return {(channels + kLanes<S> - 1) / kLanes<S>, kLanes<S>, kLanes<S>};
}

template <class S, int kWidth>
struct GroupLanes {
  // The part of j that stays within a register, and the part that leads to one beside it, in registers.
  static constexpr int within(int j) { return j % kLanes<S>; }
  static constexpr int beside(int j) { return j / kLanes<S>; }

  // Lane i becomes lane i ^ within(j).
  template <int j>
  static Vector<S> exchange(const Vector<S>& v) {
    if constexpr (within(j) == 0)
      return v;
    else
      return exchange<within(j)>(v, std::make_integer_sequence<int, kLanes<S>>{});
  }

  // Calls f(j) for each j, as a constant.
  template <class F>
  static void each(const F& f) {
    each(f, std::make_integer_sequence<int, kWidth>{});
  }

 private:
  template <int kMask, int... kLane>
  static Vector<S> exchange(const Vector<S>& v, std::integer_sequence<int, kLane...>) {
#ifdef __clang__
    return __builtin_shufflevector(v, v, (kLane ^ kMask)...);
#else
    using Index = std::conditional_t<sizeof(S) == 4, int32_t, int64_t>;
    return __builtin_shuffle(v, typename VectorOf<Index, kLanes<S>>::type{(kLane ^ kMask)...});
#endif
  }

  template <class F, int... kIndex>
  static void each(const F& f, std::integer_sequence<int, kIndex...>) {
    (f(std::integral_constant<int, kIndex>{}), ...);
  }
};

// Calls f(width) with a constant.
template <class F>
void visit_group_width(int64_t width, const F& f) {
  switch (width) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 8: return f(std::integral_constant<int, 8>{});
    default: throw std::invalid_argument("expected groups of 1, 2, 4 or 8 channels");
  }
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
