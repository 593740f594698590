// The weight gradient in tile registers, every float as the sum of kParts bfloat16 numbers. On a line of positions,
// which line.h explains,
//   g_weight[k, c, tap] = sum over positions p of g[p, k] u[p + shift(tap), c],
// 32 positions a step. g lies transposed, the positions of a channel beside each other; where no output is, it is zero,
// and u anything finite. u lies in pairs of positions, a pair a row of a register: a tap's shift is then a number of
// rows, or for an odd one of rows of a second copy, whose pairs begin with the odd positions. (To shift the transposed
// side would need no copy, but rows that cross cache lines take registers twice as long to load.)
//
// As in gather_wgrad.cpp each thread has blocks and an accumulator of its own where the result is small, and all
// threads share the blocks where it is large.
#include <array>

#include "line.h"
#include "parallel.h"
#include "tile_registers.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// Positions of a step, the first two of the next, and 16 of their channels, as a Source writes them: [34, 16].
constexpr int64_t kUnit = (kTileTerms + 2) * kTileSide;

inline void transpose(const float* from, float* to) {
#if defined(__AVX512F__)
  // Four rows' quarters in a register, and then 4 x 4 numbers in each quarter.
  for (int64_t p = 0; p < kTileTerms; p += 16, from += 16 * kTileSide)
    for (int64_t c = 0; c < kTileSide; c += 4) {
      __m512 rows[4];
      for (int64_t i = 0; i < 4; ++i) {
        const auto quarter = [&](int64_t row) { return _mm_loadu_ps(from + (i + row) * kTileSide + c); };
        rows[i] = _mm512_castps128_ps512(quarter(0));
        rows[i] = _mm512_insertf32x4(rows[i], quarter(4), 1);
        rows[i] = _mm512_insertf32x4(rows[i], quarter(8), 2);
        rows[i] = _mm512_insertf32x4(rows[i], quarter(12), 3);
      }
      const auto wide = [](__m512 v) { return _mm512_castps_pd(v); };
      const __m512d low0 = wide(_mm512_unpacklo_ps(rows[0], rows[1])),
                    low1 = wide(_mm512_unpacklo_ps(rows[2], rows[3]));
      const __m512d high0 = wide(_mm512_unpackhi_ps(rows[0], rows[1]));
      const __m512d high1 = wide(_mm512_unpackhi_ps(rows[2], rows[3]));
      float* out = to + c * kTileTerms + p;
      _mm512_storeu_pd(out, _mm512_unpacklo_pd(low0, low1));
      _mm512_storeu_pd(out + kTileTerms, _mm512_unpackhi_pd(low0, low1));
      _mm512_storeu_pd(out + 2 * kTileTerms, _mm512_unpacklo_pd(high0, high1));
      _mm512_storeu_pd(out + 3 * kTileTerms, _mm512_unpackhi_pd(high0, high1));
    }
#else
  for (int64_t c = 0; c < kTileSide; ++c)
    for (int64_t p = 0; p < kTileTerms; ++p) to[c * kTileTerms + p] = from[p * kTileSide + c];
#endif
}

// Writes a unit as [kParts, 16 channels, 32 positions].
template <int kParts>
inline void pack_rows(const float* unit, BFloat16* to) {
  alignas(64) float turned[kTileNumbers];
  transpose(unit, turned);
  for (int64_t c = 0; c < kTileSide; ++c) split<kParts>(turned + c * kTileTerms, to + c * kTileTerms, kTileNumbers);
}

// Writes a unit as pairs of positions [16, 16 channels, 2], and its parts `part` elements apart; and at `odd`, unless
// it is null, the pairs that begin with the odd positions.
template <int kParts>
inline void pack_pairs(const float* unit, BFloat16* to, BFloat16* odd, int64_t part) {
#if defined(__AVX512BF16__)
  alignas(64) static constexpr uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  using Words = VectorOf<uint32_t, 16>::type;
  const __m512i order = _mm512_load_si512(kInterleave);
  Words before[kParts];
  for (int64_t pair = 0; pair < (odd ? 17 : 16); ++pair, unit += 2 * kTileSide) {
    Vector<float> first = load(unit), second = load(unit + kTileSide);
#pragma GCC unroll 3
    for (int p = 0; p < kParts; ++p) {
      const auto both = bit_cast<__m512i>(_mm512_cvtne2ps_pbh(bit_cast<__m512>(second), bit_cast<__m512>(first)));
      const auto words = bit_cast<Words>(_mm512_permutexvar_epi16(order, both));
      first -= bit_cast<Vector<float>>(words << 16);
      second -= bit_cast<Vector<float>>(words & 0xffff0000u);
      if (pair < 16) std::memcpy(to + p * part + pair * kTileTerms, &words, sizeof(words));
      if (odd && pair > 0) {
        const Words across = before[p] >> 16 | words << 16;
        std::memcpy(odd + p * part + (pair - 1) * kTileTerms, &across, sizeof(across));
      }
      before[p] = words;
    }
  }
#else
  constexpr int N = kLanes<float>;
  const auto write = [&](BFloat16* pairs, int64_t position, int64_t c, const BFloat16* from) {
    for (int lane = 0; lane < N; ++lane) pairs[position / 2 * kTileTerms + 2 * (c + lane) + position % 2] = from[lane];
  };
  for (int64_t position = 0; position < kTileTerms + (odd ? 1 : 0); ++position)
    for (int64_t c = 0; c < kTileSide; c += N) {
      Vector<float> left = load(unit + position * kTileSide + c);
      for (int p = 0; p < kParts; ++p) {
        BFloat16 rounded[N];
        store(rounded, left);
        left -= load(rounded);
        if (position < kTileTerms) write(to + p * part, position, c, rounded);
        if (odd && position > 0) write(odd + p * part, position - 1, c, rounded);
      }
    }
#endif
}

template <int kParts>
class LineWgrad {
 public:
  LineWgrad(const ConvShape& shape, const Source<float>& u, const Source<float>& g, int threads)
      : shape_(shape),
        plan_(GatherPlan::forward(shape)),
        outputs_(plan_.phases.front()),
        line_(plan_),
        u_source_(u),
        g_source_(g),
        c_tiles_((shape.channels + kTileSide - 1) / kTileSide),
        k_tiles_((shape.out_channels + kTileSide - 1) / kTileSide),
        steps_((line_.rows() * line_.pitch() + kTileTerms - 1) / kTileTerms) {
    for (const Tap& tap : outputs_.taps) {
      reach_ = std::max(reach_, (line_.shift(tap) + kTileTerms - 1) / kTileTerms);
      copies_ = std::max<int64_t>(copies_, line_.shift(tap) % 2 + 1);
    }
    const int64_t tiles = line_.planes() * copies_ * c_tiles_ + k_tiles_;
    const int64_t each = tiles * kParts * kTileNumbers * static_cast<int64_t>(sizeof(BFloat16));
    block_ = std::min(std::clamp<int64_t>(kBlockBytes / each, kLeastSteps, kMostSteps), steps_);
    strip_ = (block_ + reach_) * kTileNumbers;
    sums_size_ = blocks(c_tiles_) * blocks(k_tiles_) * taps() * kSums;
    is_alone_ = sums_size_ * static_cast<int64_t>(sizeof(float)) <= kOwnBytes;
    const int crews = is_alone_ ? threads : 1;
    plane_size_ = copies_ * c_tiles_ * kParts * strip_;
    u_size_ = line_.planes() * plane_size_;
    g_size_ = k_tiles_ * block_ * kParts * kTileNumbers;
    staged_size_ = std::max(c_tiles_, k_tiles_) * kUnit;
    staged_ = workspace<float>(Slot::strips, staged_size_ * threads);
    u_ = workspace<BFloat16>(Slot::tiles, u_size_ * crews);
    g_ = workspace<BFloat16>(Slot::gradients, g_size_ * crews);
    sums_ = workspace<float>(Slot::sums, sums_size_ * crews);
  }

  void run(int part, int parts, float* g_weight, const FilterStrides& strides) {
    const Crew crew = Crew::of(part, parts, is_alone_);
    const Matrices own{u_ + crew.number * u_size_, g_ + crew.number * g_size_, sums_ + crew.number * sums_size_};
    const Range all = crew.share_of_crew(steps_);
    if (all.begin == all.end) std::fill_n(own.sums, sums_size_, 0.0f);
    Tiles tiles;
    Pixels pixels = pixels_of(all.begin, std::min(block_, all.end - all.begin));
    for (int64_t step = all.begin; step < all.end; step += block_) {
      const int64_t count = std::min(block_, all.end - step);
      pack(pixels, count, crew, staged_ + part * staged_size_, own);
      pixels = pixels_of(step + count, std::min(block_, all.end - step - count));
      Ahead ahead;
      announce(pixels, crew, ahead);
      crew.wait();
      multiply(tiles, own, count, crew, step > all.begin, ahead);
      crew.wait();
    }
    barrier(parts);
    write(share(blocks(k_tiles_) * blocks(c_tiles_), part, parts), crew.crews, g_weight, strides);
  }

 private:
  // Of L2, for the packed block; its steps.
  static constexpr int64_t kBlockBytes = 512 * 1024, kLeastSteps = 4, kMostSteps = 64;
  // A piece of two tiles of g stays in L1 while those of u go by.
  static constexpr int64_t kPiece = 12 / kParts;
  // Of L2, for an accumulator of each thread's own.
  static constexpr int64_t kOwnBytes = 640 * 1024;
  static constexpr int64_t kMostAhead = 256;  // bytes a step
  static constexpr int64_t kBlockSide = 2 * kTileSide, kSums = kBlockSide * kBlockSide;

  // A crew's.
  struct Matrices {
    BFloat16* u;  // [planes, copies, c_tiles, kParts, block + reach, 16 pairs, 16, 2]
    BFloat16* g;  // [k_tiles, block, kParts, 16, 32]
    float* sums;  // [K / 32, C / 32, taps, 32, 32]
  };

  // Positions of a block, which hold so many pixels from `pixel` on, a step apart; between them are zeros.
  struct Run {
    int64_t position, pixel, count;
  };
  struct Pixels {
    std::vector<std::vector<Run>> u;  // of each plane
    std::vector<Run> g;
  };

  static int64_t blocks(int64_t tiles) { return (tiles + 1) / 2; }
  int64_t taps() const { return static_cast<int64_t>(outputs_.taps.size()); }

  Pixels pixels_of(int64_t step, int64_t count) const {
    Pixels pixels;
    pixels.u.resize(line_.planes());
    if (count <= 0) return pixels;
    const auto add = [](std::vector<Run>& runs, const Run& run, int64_t pixel_step) {
      if (!runs.empty()) {
        Run& last = runs.back();
        const bool follows = last.position + last.count == run.position;
        if (follows && last.pixel + last.count * pixel_step == run.pixel) {
          last.count += run.count;
          return;
        }
      }
      runs.push_back(run);
    };
    const int64_t pitch = line_.pitch(), first = step * kTileTerms, last = (step + count) * kTileTerms;
    const int64_t begin = first / pitch, end = (last + pitch - 1) / pitch, before = first - begin * pitch;
    line_.each_stretch(begin, end, [&](int64_t plane, int64_t position, int64_t pixel, int64_t n) {
      if (pixel >= 0) add(pixels.u[plane], {position - before, pixel, n}, plan_.in_step_w);
    });
    line_.each_output(outputs_, begin, std::min(end, line_.rows()), [&](int64_t position, int64_t pixel, int64_t n) {
      add(pixels.g, {position - before, pixel, n}, 1);
    });
    return pixels;
  }

  void announce(const Pixels& pixels, const Crew& crew, Ahead& ahead) const {
    const auto add = [&](const Source<float>& source, const std::vector<Run>& runs, int64_t pixel_step) {
      if (runs.empty()) return;
      const int64_t first = runs.front().pixel, last = runs.back().pixel + runs.back().count * pixel_step;
      const Range range = crew.share_of_member(last - first);
      source.announce(first + range.begin, range.end - range.begin, ahead);
    };
    add(g_source_, pixels.g, 1);
    add(u_source_, pixels.u.front(), plan_.in_step_w);
  }

  void pack(const Pixels& pixels, int64_t count, const Crew& crew, float* staged, const Matrices& to) const {
    const int64_t u_steps = count + reach_;
    const Range items = crew.share_of_member(line_.planes() * u_steps + count);
    for (int64_t item = items.begin; item < items.end; ++item) {
      const int64_t plane = item / u_steps, step = item % u_steps;
      if (plane < line_.planes()) {
        stage(u_source_, pixels.u[plane], step, kTileTerms + copies_ - 1, plan_.in_step_w, c_tiles_, staged);
        const int64_t to_odd = copies_ > 1 ? c_tiles_ * kParts * strip_ : 0;
        BFloat16* pairs = to.u + plane * plane_size_ + step * kTileNumbers;
        for (int64_t tile = 0; tile < c_tiles_; ++tile, pairs += kParts * strip_)
          pack_pairs<kParts>(staged + tile * kUnit, pairs, to_odd ? pairs + to_odd : nullptr, strip_);
      } else {
        const int64_t of_g = item - line_.planes() * u_steps;
        stage(g_source_, pixels.g, of_g, kTileTerms, 1, k_tiles_, staged);
        BFloat16* rows = to.g + of_g * kParts * kTileNumbers;
        for (int64_t tile = 0; tile < k_tiles_; ++tile, rows += block_ * kParts * kTileNumbers)
          pack_rows<kParts>(staged + tile * kUnit, rows);
      }
    }
  }

  // `count` positions from the first of a step on: [tiles, 34, 16].
  void stage(const Source<float>& source, const std::vector<Run>& runs, int64_t step, int64_t count, int64_t pixel_step,
             int64_t tiles, float* to) const {
    const int64_t first = step * kTileTerms;
    int64_t done = 0;
    const auto zero_until = [&](int64_t end) {
      for (int64_t tile = 0; tile < tiles; ++tile)
        std::fill(to + tile * kUnit + done * kTileSide, to + tile * kUnit + end * kTileSide, 0.0f);
    };
    auto run =
        std::partition_point(runs.begin(), runs.end(), [&](const Run& r) { return r.position + r.count <= first; });
    for (; run != runs.end() && run->position < first + count; ++run) {
      const int64_t begin = std::max<int64_t>(run->position - first, 0);
      const int64_t end = std::min(run->position + run->count - first, count);
      if (done < begin) zero_until(begin);
      source.read(run->pixel + (first + begin - run->position) * pixel_step, pixel_step, end - begin,
                  {to + begin * kTileSide, kTileSide, kTileSide, kUnit});
      done = end;
    }
    if (done < count) zero_until(count);
  }

  void multiply(Tiles& tiles, const Matrices& own, int64_t count, const Crew& crew, bool adds, Ahead& ahead) const {
    const int64_t width = blocks(c_tiles_);
    const Range items = crew.share_of_member(blocks(k_tiles_) * width);
    ahead.spread((items.end - items.begin) * taps() * count, kMostAhead);
    for (int64_t item = items.begin, n; item < items.end; item += n) {
      n = std::min(width - item % width, items.end - item);
      for (int64_t step = 0; step < count; step += kPiece)
        for (int64_t i = item; i < item + n; ++i)
          multiply_piece(tiles, own, i / width, i % width, step, std::min(kPiece, count - step), adds || step > 0,
                         ahead);
    }
  }

  // All taps of 32 x 32 pairs of channels.
  void multiply_piece(Tiles& tiles, const Matrices& own, int64_t k, int64_t c, int64_t step, int64_t count, bool adds,
                      Ahead& ahead) const {
    const bool is_high = 2 * k + 1 < k_tiles_, is_wide = 2 * c + 1 < c_tiles_;
    const auto product = is_high   ? is_wide ? multiply_registers<kParts, 2, 2> : multiply_registers<kParts, 2, 1>
                         : is_wide ? multiply_registers<kParts, 1, 2>
                                   : multiply_registers<kParts, 1, 1>;
    const int64_t k_tile = block_ * kParts * kTileNumbers, c_tile = kParts * strip_;
    const Operand a{own.g + 2 * k * k_tile + step * kParts * kTileNumbers, kTileBytes, k_tile, kTileNumbers};
    float* sums = own.sums + (k * blocks(c_tiles_) + c) * taps() * kSums;
    for (const Tap& tap : outputs_.taps) {
      const int64_t shift = line_.shift(tap), pair = shift / 2 + step * kTileTerms / 2;
      const BFloat16* plane = own.u + line_.plane(tap) * plane_size_ + shift % 2 * c_tiles_ * c_tile;
      const Operand b{plane + 2 * c * c_tile + pair * kTileTerms, kTileBytes, c_tile, strip_};
      product(tiles, a, kSteps.data(), count, b, kTileNumbers, sums, kBlockSide, adds, ahead.take(count));
      sums += kSums;
    }
  }

  // Adds up the crews' sums, in their order, for some blocks of [K / 32, C / 32].
  void write(const Range& items, int crews, float* g_weight, const FilterStrides& w) const {
    for (int64_t item = items.begin; item < items.end; ++item) {
      const int64_t k0 = item / blocks(c_tiles_) * kBlockSide, c0 = item % blocks(c_tiles_) * kBlockSide;
      const int64_t rows = std::min(kBlockSide, shape_.out_channels - k0);
      const int64_t columns = std::min(kBlockSide, shape_.channels - c0);
      float* sums = sums_ + item * taps() * kSums;
      for (const Tap& tap : outputs_.taps) {
        for (int crew = 1; crew < crews; ++crew)
          for (int64_t i = 0; i < kSums; ++i) sums[i] += sums[crew * sums_size_ + i];
        float* to = g_weight + k0 * w.k + c0 * w.c + tap.r * w.r + tap.s * w.s;
        for (int64_t k = 0; k < rows; ++k)
          for (int64_t c = 0; c < columns; ++c) to[k * w.k + c * w.c] = sums[k * kBlockSide + c];
        sums += kSums;
      }
    }
  }

  static constexpr std::array<int64_t, 12> kSteps = [] {
    std::array<int64_t, 12> steps{};
    for (size_t i = 0; i < steps.size(); ++i) steps[i] = static_cast<int64_t>(i) * kParts * kTileNumbers;
    return steps;
  }();

  const ConvShape& shape_;
  GatherPlan plan_;
  const Phase& outputs_;
  Line line_;
  const Source<float>&u_source_, &g_source_;
  int64_t c_tiles_, k_tiles_;              // 16 channels each
  int64_t steps_, block_ = 0, reach_ = 0;  // of 32 positions: in all, of a block, and what taps read beyond it
  int64_t copies_ = 1;                     // of u: the second for odd shifts
  int64_t strip_, plane_size_;             // elements of u
  int64_t u_size_, g_size_, sums_size_;    // of a crew
  int64_t staged_size_;                    // of a thread
  bool is_alone_;                          // each thread
  float *staged_, *sums_;
  BFloat16 *u_, *g_;
};

}  // namespace

template <int kParts>
void line_wgrad(const ConvShape& shape, const Source<float>& u, const Source<float>& g, int threads, float* g_weight,
                const FilterStrides& strides) {
  LineWgrad<kParts> wgrad(shape, u, g, threads);
  parallel(threads, [&](int part, int parts) { wgrad.run(part, parts, g_weight, strides); });
}

template void line_wgrad<1>(const ConvShape&, const Source<float>&, const Source<float>&, int, float*,
                            const FilterStrides&);
template void line_wgrad<2>(const ConvShape&, const Source<float>&, const Source<float>&, int, float*,
                            const FilterStrides&);
template void line_wgrad<3>(const ConvShape&, const Source<float>&, const Source<float>&, int, float*,
                            const FilterStrides&);

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
