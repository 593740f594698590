// 1x1 convolutions for inference.
#pragma once

#include "conv.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// The output of a convolution in pieces that are finished in L1: a tile's pixels of one panel's channels.
template <class S>
class PieceSink {
 public:
  virtual ~PieceSink() = default;

  // Everything that comes after the convolution, for `count` pixels from `pixel` on and `columns` channels from
  // `channel` on, whose sums lie in `rows` [count, kPanel].
  virtual void finish_piece(const S* rows, int64_t pixel, int64_t count, int64_t channel, int64_t columns) = 0;
  // The memory that finishing these pixels will read.
  virtual void announce(int64_t pixel, int64_t count, Ahead& ahead) const = 0;
};

inline bool is_pointwise_conv(const ConvShape& s) {
  return s.kernel_h == 1 && s.kernel_w == 1 && s.pad_h == 0 && s.pad_w == 0 && s.groups == 1;
}

// `packed` holds the filter as pack_gather has written it.
template <class S>
void pointwise_conv(const ConvShape& shape, const S* packed, const Source<S>& source, PieceSink<S>& sink, int threads);

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
