// From the algorithm asked for to the engine's functions, in one place.
#pragma once

#include <stdexcept>

#include "conv.h"
#include "kernels.h"
#include "parallel.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// m of F(m x m, 3x3), or 0 for direct convolution.
inline int winograd_size(const ConvArgs& a) {
  switch (a.algorithm) {
    case ConvAlgorithm::direct: return 0;
    case ConvAlgorithm::winograd_f2: return 2;
    case ConvAlgorithm::winograd_f4: return 4;
  }
  throw std::invalid_argument("unknown convolution algorithm");
}

// Threads worth waking for a convolution: a grain of elements costs about as much as 64 times as many multiplications.
inline int threads_for_conv(const ConvArgs& a) {
  const ConvShape& s = a.shape;
  const int64_t outputs = s.batch * s.out_height * s.out_width * s.out_channels;
  return threads_for(outputs * (s.channels / s.groups) * s.kernel_h * s.kernel_w / 64, a.threads);
}

// Packs a filter into the workspace.
template <class S>
const S* packed_filter(const ConvArgs& a, const GatherPlan& plan, const Filter<S>& filter) {
  const int m = winograd_size(a), threads = threads_for_conv(a);
  S* packed = workspace<S>(Slot::filters, m ? packed_winograd_size(m, filter) : packed_gather_size(plan, filter));
  m ? pack_winograd(m, filter, threads, packed) : pack_gather(plan, filter, threads, packed);
  return packed;
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
