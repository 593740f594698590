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

// from[i][j] to to[j][i].
inline void transpose_square(const float* from, float* to) {
#if defined(__AVX512F__)
  // Registers of four rows' quarters, 4 x 4 numbers in each lane of which change places.
  for (int64_t c = 0; c < kTileSide; c += 4) {
    __m512 rows[4];
    for (int64_t i = 0; i < 4; ++i) {
      const auto quarter = [&](int64_t row) { return _mm_loadu_ps(from + (i + row) * kTileSide + c); };
      rows[i] = _mm512_castps128_ps512(quarter(0));
      rows[i] = _mm512_insertf32x4(rows[i], quarter(4), 1);
      rows[i] = _mm512_insertf32x4(rows[i], quarter(8), 2);
      rows[i] = _mm512_insertf32x4(rows[i], quarter(12), 3);
    }
    const auto pairs = [](__m512 v) { return _mm512_castps_pd(v); };
    const __m512d low0 = pairs(_mm512_unpacklo_ps(rows[0], rows[1])),
                  low1 = pairs(_mm512_unpacklo_ps(rows[2], rows[3]));
    const __m512d high0 = pairs(_mm512_unpackhi_ps(rows[0], rows[1]));
    const __m512d high1 = pairs(_mm512_unpackhi_ps(rows[2], rows[3]));
    float* out = to + c * kTileSide;
    _mm512_storeu_pd(out, _mm512_unpacklo_pd(low0, low1));
    _mm512_storeu_pd(out + kTileSide, _mm512_unpackhi_pd(low0, low1));
    _mm512_storeu_pd(out + 2 * kTileSide, _mm512_unpacklo_pd(high0, high1));
    _mm512_storeu_pd(out + 3 * kTileSide, _mm512_unpackhi_pd(high0, high1));
  }
#else
  for (int64_t i = 0; i < kTileSide; ++i)
    for (int64_t j = 0; j < kTileSide; ++j) to[j * kTileSide + i] = from[i * kTileSide + j];
#endif
}

// Writes two squares as words [16, 16, 2], a register, and each of their parts `part` elements apart.
template <int kParts>
inline void pack_squares(const float* first, const float* second, BFloat16* to, int64_t part) {
  using Words = typename VectorOf<uint32_t, kLanes<float>>::type;
  for (int64_t i = 0; i < kSquare; i += kLanes<float>) {
    Vector<float> low = load(first + i), high = load(second + i);
#pragma GCC unroll 3
    for (int p = 0; p < kParts; ++p) {
      // To the nearest; what two parts have left of a float is a bfloat16 number. A NaN that the addition turns into
      // something else is still one in the last part.
      const auto rounded = [p](Vector<float> v) {
        const Words bits = bit_cast<Words>(v);
        if (p == 2) return bits;
        if (p < kParts - 1) return bits + 0x8000u;
        return v != v ? Words{} + 0x7fc00000u : bits + 0x8000u;
      };
      const Words low_bits = rounded(low), high_bits = rounded(high) & 0xffff0000u;
      const Words words = low_bits >> 16 | high_bits;
      std::memcpy(to + p * part + 2 * i, &words, sizeof(words));
      low -= bit_cast<Vector<float>>(low_bits & 0xffff0000u);
      high -= bit_cast<Vector<float>>(high_bits);
    }
  }
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
