// The weight gradient in tile registers, every float as the sum of kParts bfloat16 numbers. On a line of positions,
// which line.h explains,
//   g_weight[k, c, tap] = sum over positions p of g[p, k] u[p + shift(tap), c],
// 32 positions a step. u lies transposed, the positions of a channel beside each other: a tap's shift is then where in
// memory a register's rows begin. g lies in pairs of positions. Where no output is, g is zero and u anything finite.
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

// Positions of a step and their channels, 16 at a time, as a Source writes them: [32, 16].
constexpr int64_t kUnit = kTileTerms * kTileSide;

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

// Writes a unit as 16 rows of positions, `row` elements apart, and kParts of those `part` elements apart.
template <int kParts>
inline void pack_rows(const float* unit, BFloat16* to, int64_t row, int64_t part) {
  alignas(64) float turned[kUnit];
  transpose(unit, turned);
  for (int64_t c = 0; c < kTileSide; ++c) split<kParts>(turned + c * kTileTerms, to + c * row, part);
}

// Writes a unit as pairs of positions [kParts, 16, 16 channels, 2].
template <int kParts>
inline void pack_pairs(const float* unit, BFloat16* to) {
#if defined(__AVX512BF16__)
  alignas(64) static constexpr uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  using Words = VectorOf<uint32_t, 16>::type;
  const __m512i order = _mm512_load_si512(kInterleave);
  for (int64_t p = 0; p < kTileTerms; p += 2, unit += 2 * kTileSide, to += kTileTerms) {
    Vector<float> even = load(unit), odd = load(unit + kTileSide);
#pragma GCC unroll 3
    for (int part = 0; part < kParts; ++part) {
      const auto both = bit_cast<__m512i>(_mm512_cvtne2ps_pbh(bit_cast<__m512>(odd), bit_cast<__m512>(even)));
      const auto pairs = bit_cast<Words>(_mm512_permutexvar_epi16(order, both));
      std::memcpy(to + part * kUnit, &pairs, sizeof(pairs));
      even -= bit_cast<Vector<float>>(pairs << 16);
      odd -= bit_cast<Vector<float>>(pairs & 0xffff0000u);
    }
  }
#else
  for (int64_t p = 0; p < kTileTerms; ++p)
    for (int64_t c = 0; c < kTileSide; c += kLanes<float>) {
      Vector<float> left = load(unit + p * kTileSide + c);
      for (int part = 0; part < kParts; ++part) {
        BFloat16 rounded[kLanes<float>];
        store(rounded, left);
        left -= load(rounded);
        BFloat16* pairs = to + part * kUnit + (p / 2) * kTileTerms + p % 2;
        for (int lane = 0; lane < kLanes<float>; ++lane) pairs[2 * (c + lane)] = rounded[lane];
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
    for (const Tap& tap : outputs_.taps) reach_ = std::max(reach_, (line_.shift(tap) + kTileTerms - 1) / kTileTerms);
    const int64_t each = (c_tiles_ * line_.planes() + k_tiles_) * kParts * kUnit * sizeof(BFloat16);
    block_ = std::min(std::clamp<int64_t>(kBlockBytes / each, kLeastSteps, kMostSteps), steps_);
    // Rows an odd number of cache lines apart fall into different sets.
    row_ = (block_ + reach_) / 2 * 2 * kTileTerms + kTileTerms;
    sums_size_ = blocks(c_tiles_) * blocks(k_tiles_) * taps() * kSums;
    is_alone_ = sums_size_ * static_cast<int64_t>(sizeof(float)) <= kOwnBytes;
    const int crews = is_alone_ ? threads : 1;
    plane_size_ = c_tiles_ * kParts * kTileSide * row_;
    u_size_ = line_.planes() * plane_size_;
    g_size_ = k_tiles_ * block_ * kParts * kUnit;
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
  static constexpr int64_t kMostAhead = 4096;  // bytes a step
  // Sums are kept [K / 32, C / 32, taps, 32 of C, 32 of K].
  static constexpr int64_t kBlockSide = 2 * kTileSide, kSums = kBlockSide * kBlockSide;

  // A crew's.
  struct Matrices {
    BFloat16* u;  // [planes, c_tiles, kParts, 16, row]
    BFloat16* g;  // [k_tiles, block, kParts, 16 pairs, 16, 2]
    float* sums;
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
        stage(u_source_, pixels.u[plane], step, plan_.in_step_w, c_tiles_, staged);
        BFloat16* rows = to.u + plane * plane_size_ + step * kTileTerms;
        for (int64_t tile = 0; tile < c_tiles_; ++tile, rows += kParts * kTileSide * row_)
          pack_rows<kParts>(staged + tile * kUnit, rows, row_, kTileSide * row_);
      } else {
        const int64_t of_g = item - line_.planes() * u_steps;
        stage(g_source_, pixels.g, of_g, 1, k_tiles_, staged);
        BFloat16* pairs = to.g + of_g * kParts * kUnit;
        for (int64_t tile = 0; tile < k_tiles_; ++tile, pairs += block_ * kParts * kUnit)
          pack_pairs<kParts>(staged + tile * kUnit, pairs);
      }
    }
  }

  // The positions of a step: [tiles, 32, 16].
  void stage(const Source<float>& source, const std::vector<Run>& runs, int64_t step, int64_t pixel_step, int64_t tiles,
             float* to) const {
    const int64_t first = step * kTileTerms;
    int64_t done = 0;
    const auto zero_until = [&](int64_t end) {
      for (int64_t tile = 0; tile < tiles; ++tile)
        std::fill(to + tile * kUnit + done * kTileSide, to + tile * kUnit + end * kTileSide, 0.0f);
    };
    auto run =
        std::partition_point(runs.begin(), runs.end(), [&](const Run& r) { return r.position + r.count <= first; });
    for (; run != runs.end() && run->position < first + kTileTerms; ++run) {
      const int64_t begin = std::max<int64_t>(run->position - first, 0);
      const int64_t end = std::min(run->position + run->count - first, kTileTerms);
      if (done < begin) zero_until(begin);
      source.read(run->pixel + (first + begin - run->position) * pixel_step, pixel_step, end - begin,
                  {to + begin * kTileSide, kTileSide, kTileSide, kUnit});
      done = end;
    }
    if (done < kTileTerms) zero_until(kTileTerms);
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
    const bool is_high = 2 * c + 1 < c_tiles_, is_wide = 2 * k + 1 < k_tiles_;
    const auto product = is_high   ? is_wide ? multiply_registers<kParts, 2, 2> : multiply_registers<kParts, 2, 1>
                         : is_wide ? multiply_registers<kParts, 1, 2>
                                   : multiply_registers<kParts, 1, 1>;
    const int64_t c_tile = kParts * kTileSide * row_, k_tile = block_ * kParts * kUnit;
    const Operand b{own.g + 2 * k * k_tile + step * kParts * kUnit, kTileBytes, k_tile, kUnit};
    float* sums = own.sums + (k * blocks(c_tiles_) + c) * taps() * kSums;
    for (const Tap& tap : outputs_.taps) {
      const BFloat16* from = own.u + line_.plane(tap) * plane_size_ + 2 * c * c_tile;
      const Operand a{from + line_.shift(tap) + step * kTileTerms, row_ * static_cast<int64_t>(sizeof(BFloat16)),
                      c_tile, kTileSide * row_};
      product(tiles, a, kSteps.data(), count, b, kParts * kUnit, sums, kBlockSide, adds, ahead.take(count));
      sums += kSums;
    }
  }

  // Adds up the crews' sums, in their order, for some blocks of [K / 32, C / 32].
  void write(const Range& items, int crews, float* g_weight, const FilterStrides& w) const {
    for (int64_t item = items.begin; item < items.end; ++item) {
      const int64_t k0 = item / blocks(c_tiles_) * kBlockSide, c0 = item % blocks(c_tiles_) * kBlockSide;
      const int64_t rows = std::min(kBlockSide, shape_.channels - c0);
      const int64_t columns = std::min(kBlockSide, shape_.out_channels - k0);
      float* sums = sums_ + item * taps() * kSums;
      for (const Tap& tap : outputs_.taps) {
        for (int crew = 1; crew < crews; ++crew)
          for (int64_t i = 0; i < kSums; ++i) sums[i] += sums[crew * sums_size_ + i];
        float* to = g_weight + k0 * w.k + c0 * w.c + tap.r * w.r + tap.s * w.s;
        for (int64_t k = 0; k < columns; ++k)
          for (int64_t c = 0; c < rows; ++c) to[k * w.k + c * w.c] = sums[c * kBlockSide + k];
        sums += kSums;
      }
    }
  }

  static constexpr std::array<int64_t, 12> kSteps = [] {
    std::array<int64_t, 12> steps{};
    for (size_t i = 0; i < steps.size(); ++i) steps[i] = static_cast<int64_t>(i) * kTileTerms;
    return steps;
  }();

  const ConvShape& shape_;
  GatherPlan plan_;
  const Phase& outputs_;
  Line line_;
  const Source<float>&u_source_, &g_source_;
  int64_t c_tiles_, k_tiles_;        // 16 channels each
  int64_t steps_;                    // of 32 positions, in all
  int64_t reach_ = 0, block_, row_;  // steps beyond a block that taps read; of a block; elements
  int64_t plane_size_, u_size_, g_size_, sums_size_, staged_size_;  // of a crew, and of a thread
  bool is_alone_;                                                   // each thread
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
