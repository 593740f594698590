// Convolutions one after another, for inference, with everything that does not change from call to call made ready.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace fused_resnet {

// A change to a filter that its version does not tell of (`weight.data.mul_(2)`) shows here, unless it leaves 16
// numbers spread over the filter as they were. 0 for a filter whose elements are not side by side.
uint64_t filter_fingerprint(const ConvArgs& conv, const void* weight);

// Values are numbered: first those that are given, then each layer's output.
struct PreparedLayer {
  ConvBnAddActArgs args;  // without x, residual and out
  PoolShape pool;         // of a max pool after it; kernel_h 0: none
  int x, residual;        // numbers of values; -1: no residual
  uint64_t fingerprint;   // of the filter when it was packed
};

class PreparedConvs {
 public:
  PreparedConvs(size_t given, std::vector<PreparedLayer> layers);

  // Writes the last layer's output to `out`, the others to working memory. False, with nothing written, where a filter
  // is not as it was when it was packed, or was packed for another instruction set.
  bool run(const std::vector<const void*>& given, void* out) const;

 private:
  // Where a layer writes, in bytes from the beginning of working memory.
  struct Place {
    size_t before_pool, out;
  };

  void lay_out();

  const Kernels* kernels_;
  std::vector<PreparedLayer> layers_;
  std::vector<Place> places_;
  size_t given_, bytes_ = 0;
};

}  // namespace fused_resnet
