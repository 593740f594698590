// From the algorithm asked for to the engine's functions, in one place.
#pragma once

#include <stdexcept>

#include "conv.h"
#include "kernels.h"
#include "parallel.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

inline bool is_winograd(const ConvArgs& a) {
  switch (a.algorithm) {
    case ConvAlgorithm::winograd_f2:
    case ConvAlgorithm::winograd_f4:
    case ConvAlgorithm::winograd_f5:
    case ConvAlgorithm::winograd_s2:
    case ConvAlgorithm::winograd_stem: return true;
    default: return false;
  }
}

// Of narrow groups, with channels as lanes.
inline bool is_narrow(const ConvArgs& a) {
  return a.algorithm == ConvAlgorithm::depthwise || a.algorithm == ConvAlgorithm::grouped;
}

// Parts of a float for tile registers, or 0 where it is another algorithm.
inline int float_parts(const ConvArgs& a) {
  switch (a.algorithm) {
    case ConvAlgorithm::bf16x1: return 1;
    case ConvAlgorithm::bf16x3: return 2;
    case ConvAlgorithm::bf16x6: return 3;
    case ConvAlgorithm::direct:
    case ConvAlgorithm::depthwise:
    case ConvAlgorithm::grouped:
    case ConvAlgorithm::winograd_f2:
    case ConvAlgorithm::winograd_f4:
    case ConvAlgorithm::winograd_f5:
    case ConvAlgorithm::winograd_s2:
    case ConvAlgorithm::winograd_stem: return 0;
  }
  throw std::invalid_argument("unknown convolution algorithm");
}

// Calls f(number of parts) with a constant where S is float and the algorithm is one of parts; else returns false.
template <class S, class F>
bool visit_parts(const ConvArgs& a, const F& f) {
  const int parts = float_parts(a);
  if (!parts) return false;
  if constexpr (std::is_same_v<S, float>) {
    parts == 1   ? f(std::integral_constant<int, 1>{})
    : parts == 2 ? f(std::integral_constant<int, 2>{})
                 : f(std::integral_constant<int, 3>{});
    return true;
  }
  throw std::invalid_argument("float64 is not the sum of bfloat16 numbers");
}

// Threads worth waking for a convolution: a grain of elements costs about as much as 64 times as many multiplications,
// and what reads and writes them is no cheaper where there are few.
inline int threads_for_conv(const ConvArgs& a) {
  const ConvShape& s = a.shape;
  const int64_t outputs = s.batch * s.out_height * s.out_width * s.out_channels;
  const int64_t products = outputs * (s.channels / s.groups) * s.kernel_h * s.kernel_w;
  return threads_for(is_narrow(a) ? outputs : products / 64, a.threads);
}

// Elements of a packed filter.
template <class S>
int64_t packed_size(const ConvArgs& a, const GatherPlan& plan, const Filter<S>& filter) {
  int64_t size = 0;
  if (visit_parts<S>(a, [&](auto parts) { size = packed_line_size<parts>(plan, filter); })) return size;
  if (is_narrow(a)) return packed_grouped_size(plan, filter);
  return is_winograd(a) ? packed_winograd_size(a.algorithm, filter) : packed_gather_size(plan, filter);
}

template <class S>
void pack(const ConvArgs& a, const GatherPlan& plan, const Filter<S>& filter, S* packed) {
  const int threads = threads_for_conv(a);
  if (visit_parts<S>(a, [&](auto parts) { pack_line<parts>(plan, filter, threads, packed); })) return;
  if (is_narrow(a)) return pack_grouped(plan, filter, packed);
  is_winograd(a) ? pack_winograd(a.algorithm, filter, threads, packed) : pack_gather(plan, filter, threads, packed);
}

// Packs a filter into the workspace.
template <class S>
const S* packed_filter(const ConvArgs& a, const GatherPlan& plan, const Filter<S>& filter) {
  S* packed = workspace<S>(Slot::filters, packed_size(a, plan, filter));
  pack(a, plan, filter, packed);
  return packed;
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
