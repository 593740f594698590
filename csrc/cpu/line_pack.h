// Two stretches of a line of positions, packed for a product in tile registers whose sum runs over positions.
//
// 16 positions of each stretch are one step. A 32-bit word holds a number of the first stretch and the one at the same
// place in the second: so words are made lane by lane, and a tap's shift is a number of whole rows of a register. (With
// neighbours in a word, odd shifts would need a second copy.)
#pragma once

#include <algorithm>
#include <vector>

#include "conv.h"
#include "tile_registers.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// 16 channels of a step: [2 stretches, 16 positions, 16 channels].
constexpr int64_t kSquare = kTileSide * kTileSide;

// Writes two squares as words [16, 16, 2], a register, and each of their parts `part` elements apart.
template <int kParts>
inline void pack_squares(const float* squares, BFloat16* to, int64_t part) {
  for (int64_t i = 0; i < kTileSide; ++i, squares += kTileSide)
    split_pairs<kParts>(squares, squares + kSquare, to + i * kTileTerms, part);
}

// The pixels that lie on a line, and where; all else on it is zero.
class LinePixels {
 public:
  explicit LinePixels(int64_t pixel_step) : pixel_step_(pixel_step) {}

  // `count` positions that hold pixels from `pixel` on, beyond those there are.
  void add(int64_t position, int64_t pixel, int64_t count) {
    if (!runs_.empty()) {
      Run& last = runs_.back();
      if (last.end == position && last.pixel + (last.end - last.begin) * pixel_step_ == pixel) {
        last.end += count;
        return;
      }
    }
    runs_.push_back({position, position + count, pixel});
  }

  // Writes `count` positions from `first` on, which is beyond those read before, as `tiles` times [2, 16, 16].
  void read(const Source<float>& source, int64_t first, int64_t count, int64_t tiles, float* to) {
    while (next_ < runs_.size() && runs_[next_].end <= first) ++next_;
    int64_t done = first;
    const auto zero_until = [&](int64_t end) {
      for (int64_t tile = 0; tile < tiles; ++tile)
        std::fill_n(to + tile * 2 * kSquare + (done - first) * kTileSide, (end - done) * kTileSide, 0.0f);
    };
    for (size_t i = next_; i < runs_.size() && runs_[i].begin < first + count; ++i) {
      const int64_t begin = std::max(runs_[i].begin, first), end = std::min(runs_[i].end, first + count);
      if (done < begin) zero_until(begin);
      source.read(runs_[i].pixel + (begin - runs_[i].begin) * pixel_step_, pixel_step_, end - begin,
                  {to + (begin - first) * kTileSide, kTileSide, kTileSide, 2 * kSquare});
      done = end;
    }
    if (done < first + count) zero_until(first + count);
  }

  // Asks for the memory of `count` positions from `first` on, which is beyond those read before.
  void prefetch(const Source<float>& source, int64_t first, int64_t count) const {
    for (size_t i = next_; i < runs_.size() && runs_[i].begin < first + count; ++i) {
      const int64_t begin = std::max(runs_[i].begin, first), end = std::min(runs_[i].end, first + count);
      if (begin < end)
        source.prefetch(runs_[i].pixel + (begin - runs_[i].begin) * pixel_step_, pixel_step_, end - begin);
    }
  }

 private:
  struct Run {
    int64_t begin, end, pixel;
  };
  int64_t pixel_step_;
  std::vector<Run> runs_;
  size_t next_ = 0;
};

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
