// Memory that will be read soon: the matrix products ask for it, a cache line every few multiplications, while they
// work on what is in the caches already. Otherwise a block of a convolution would first wait for memory, with the
// multipliers idle, and then multiply, with the memory idle.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

class Ahead {
 public:
  void clear() {
    ranges_.clear();
    next_ = 0;
  }

  void add(const void* begin, int64_t bytes) { ranges_.push_back({static_cast<const char*>(begin), bytes}); }

  // The next stretch of about this many bytes; nullptr after the last. A prefetch past its end does no harm.
  const char* take(int64_t bytes) {
    if (next_ == ranges_.size()) return nullptr;
    Stretch& range = ranges_[next_];
    const char* begin = range.begin;
    range.begin += bytes;
    range.bytes -= bytes;
    if (range.bytes <= 0) ++next_;
    return begin;
  }

 private:
  struct Stretch {
    const char* begin;
    int64_t bytes;
  };
  std::vector<Stretch> ranges_;
  size_t next_ = 0;
};

// Bytes that a product asks for in each step of its sum.
constexpr int64_t kRowsAhead = 64, kColumnsAhead = 32;

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
