// Places in one block of memory for images that are not all needed at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../shapes.h"

namespace fused_resnet {

class Places {
 public:
  // The first place, in bytes from the block's beginning, for an image [pixels, channels] that is written in step `now`
  // and read up to step `last`. Steps come in their order.
  size_t add(DType dtype, int64_t pixels, int64_t channels, size_t now, size_t last) {
    const size_t bytes = room(dtype, pixels, channels);
    regions_.erase(
        std::remove_if(regions_.begin(), regions_.end(), [now](const Region& region) { return region.last < now; }),
        regions_.end());
    size_t begin = 0;
    auto at = regions_.begin();  // in the order of their addresses
    for (; at != regions_.end() && at->begin < begin + bytes; ++at) begin = at->end;
    regions_.insert(at, {begin, begin + bytes, last});
    bytes_ = std::max(bytes_, begin + bytes);
    return begin;
  }

  // Of the block.
  size_t bytes() const { return bytes_; }

 private:
  struct Region {
    size_t begin, end, last;
  };

  // Not whole pages, for images that are read and written together not to share the sets of the caches.
  static size_t room(DType dtype, int64_t pixels, int64_t channels) {
    constexpr size_t kLine = 64, kSkew = 17 * kLine;
    return (static_cast<size_t>(pixels * channels) * bytes_of(dtype) + kLine - 1) / kLine * kLine + kSkew;
  }

  static size_t bytes_of(DType dtype) {
    switch (dtype) {
      case DType::float32: return 4;
      case DType::float64: return 8;
      case DType::bfloat16:
      case DType::float16: return 2;
    }
    return 0;
  }

  std::vector<Region> regions_;
  size_t bytes_ = 0;
};

}  // namespace fused_resnet
