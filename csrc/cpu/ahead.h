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

  // As add(), but to be asked for before all else.
  void add_first(const void* begin, int64_t bytes) { urgent_ = {static_cast<const char*>(begin), bytes}; }

  // The next stretch of about this many bytes; nullptr after the last. A prefetch past its end does no harm.
  const char* take(int64_t bytes) {
    if (urgent_.bytes > 0) return urgent_.advance(bytes);
    if (next_ == ranges_.size()) return nullptr;
    const char* begin = ranges_[next_].advance(bytes);
    if (ranges_[next_].bytes <= 0) ++next_;
    return begin;
  }

 private:
  struct Stretch {
    const char* begin = nullptr;
    int64_t bytes = 0;

    const char* advance(int64_t by) {
      begin += by;
      bytes -= by;
      return begin - by;
    }
  };
  Stretch urgent_;
  std::vector<Stretch> ranges_;
  size_t next_ = 0;
};

// Bytes that a product asks for in each step of its sum.
constexpr int64_t kRowsAhead = 64, kColumnsAhead = 32;

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
