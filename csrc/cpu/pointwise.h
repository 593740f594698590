// 1x1 convolutions for inference.
#pragma once

#include "conv.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

inline bool is_pointwise_conv(const ConvShape& s) {
  return s.kernel_h == 1 && s.kernel_w == 1 && s.pad_h == 0 && s.pad_w == 0 && s.groups == 1;
}

// `packed` holds the filter as pack_gather has written it.
template <class S>
void pointwise_conv(const ConvShape& shape, const S* packed, const Source<S>& source, PieceSink<S>& sink, int threads);

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
