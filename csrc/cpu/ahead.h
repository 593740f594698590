// Memory that will be read soon: the matrix products ask for it, a little in each step of their sums, while they work
// on what is in the caches already. Otherwise a block of a convolution would first wait for memory, with the
// multipliers idle, and then multiply, with the memory idle.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// What one product asks for: so many bytes from `begin` on in each step of its sum. A prefetch past the end of what was
// meant does no harm.
struct Prefetch {
  const char* begin = nullptr;
  int64_t bytes_per_step = 0;
};

// Asks for `count` elements at once.
template <class T>
inline void prefetch(const T* from, int64_t count) {
  const char* line = reinterpret_cast<const char*>(from);
  for (const char* end = line + count * static_cast<int64_t>(sizeof(T)); line < end; line += 64)
    __builtin_prefetch(line);
}

class Ahead {
 public:
  void clear() { *this = Ahead(); }

  void add(const void* begin, int64_t bytes) {
    ranges_.push_back({static_cast<const char*>(begin), bytes});
    bytes_ += bytes;
  }

  // As add(), but to be asked for before all else, within so many steps.
  void add_first(const void* begin, int64_t bytes, int64_t steps) {
    urgent_ = {static_cast<const char*>(begin), bytes};
    urgent_pace_ = pace_for(bytes, steps);
  }

  // All of it is to be asked for within so many steps, evenly: a burst would fill the buffers that the products' own
  // loads need.
  void spread(int64_t steps) { pace_ = pace_for(bytes_, steps); }

  // The part of the next `steps` steps.
  Prefetch take(int64_t steps) {
    if (urgent_.bytes > 0) return urgent_.take(steps, urgent_pace_);
    if (next_ == ranges_.size()) return {};
    const Prefetch part = ranges_[next_].take(steps, pace_);
    if (ranges_[next_].bytes <= 0) ++next_;
    return part;
  }

 private:
  struct Range {
    const char* begin = nullptr;
    int64_t bytes = 0;

    Prefetch take(int64_t steps, int64_t pace) {
      const Prefetch part{begin, pace};
      begin += steps * pace;
      bytes -= steps * pace;
      return part;
    }
  };

  static int64_t pace_for(int64_t bytes, int64_t steps) {
    constexpr int64_t kLine = 64;
    return std::clamp<int64_t>((bytes + steps - 1) / std::max<int64_t>(steps, 1), 1, kLine);
  }

  Range urgent_;
  std::vector<Range> ranges_;
  size_t next_ = 0;
  int64_t bytes_ = 0, pace_ = 0, urgent_pace_ = 0;
};

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
