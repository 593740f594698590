// The weight gradient in tile registers, every float as the sum of kParts bfloat16 numbers. On a line of positions,
// which line.h explains,
//   g_weight[k, c, tap] = sum over positions p of g[p, k] u[p + shift(tap), c],
// where g is zero at positions that are no outputs, and u finite everywhere. g lies transposed: 16 channels are the
// rows of a register. A thread's stretch of the line is cut into halves, whose positions share words (line_pack.h).
//
// As in gather_wgrad.cpp each thread has blocks and an accumulator of its own where the result is small, and all
// threads share the blocks where it is large.
#include <array>

#include "line.h"
#include "line_pack.h"
#include "parallel.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

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
    for (const Tap& tap : outputs_.taps) reach_ = std::max(reach_, (line_.shift(tap) + kTileSide - 1) / kTileSide);
    for (int64_t k = 0; k < blocks(k_tiles_); ++k)
      for (int64_t c = 0; c < blocks(c_tiles_); ++c)
        if (is_connected(k, c)) pairs_.push_back({k, c});
    sums_size_ = static_cast<int64_t>(pairs_.size()) * taps() * kSums;
    is_alone_ = sums_size_ * static_cast<int64_t>(sizeof(float)) <= kOwnBytes;
    const int64_t each = (line_.planes() * c_tiles_ + k_tiles_) * kParts * kTileNumbers * sizeof(BFloat16);
    block_ =
        std::min(std::clamp<int64_t>((is_alone_ ? kBlockBytes : kSharedBytes) / each, kLeastSteps, kMostSteps), steps_);
    strip_ = ((block_ + reach_) | 1) * kTileNumbers;  // not a multiple of 4 KiB: parts would share sets of L1
    u_size_ = line_.planes() * c_tiles_ * kParts * strip_;
    g_size_ = k_tiles_ * block_ * kParts * kTileNumbers;
    staged_size_ = std::max(c_tiles_, k_tiles_) * 2 * kSquare;
    const int crews = is_alone_ ? threads : 1;
    staged_ = workspace<float>(Slot::strips, staged_size_ * threads);
    u_ = workspace<BFloat16>(Slot::tiles, 2 * u_size_ * crews);
    g_ = workspace<BFloat16>(Slot::gradients, g_size_ * crews);
    sums_ = workspace<float>(Slot::sums, sums_size_ * crews);
  }

  void run(int part, int parts, float* g_weight, const FilterStrides& strides) {
    const Crew crew = Crew::of(part, parts, is_alone_);
    const Range all = crew.share_of_crew(steps_);
    float* sums = sums_ + crew.number * sums_size_;
    if (all.begin == all.end) std::fill_n(sums, sums_size_, 0.0f);
    Tiles tiles;
    Stretches stretches = stretches_of(all);
    Block block = block_at(0, all, crew), before{};
    while (block.steps > 0) {
      pack(block, before, stretches, crew, staged_ + part * staged_size_);
      before = block;
      block = block_at(before.first + before.steps, all, crew);
      crew.wait();
      multiply(tiles, before, crew, sums);
      crew.wait();
    }
    barrier(parts);
    write(share(static_cast<int64_t>(pairs_.size()), part, parts), crew.crews, g_weight, strides);
  }

 private:
  // For a packed block of a thread's own and of all threads; its steps.
  static constexpr int64_t kBlockBytes = 512 * 1024, kSharedBytes = 1024 * 1024, kLeastSteps = 4, kMostSteps = 64;
  // A piece of two tiles of g stays in L1 while those of u go by.
  static constexpr int64_t kPiece = 12 / kParts;
  // Of L2, for an accumulator of each thread's own.
  static constexpr int64_t kOwnBytes = 1024 * 1024;
  static constexpr int64_t kBlockSide = 2 * kTileSide, kSums = kBlockSide * kBlockSide;

  // Blocks of 32 outputs and of 32 inputs of the convolution.
  struct Pair {
    int64_t k, c;
  };

  // Steps of the line, packed.
  struct Block {
    BFloat16* u;  // [planes, c_tiles, kParts, steps + reach, 16 positions, 16, 2]
    BFloat16* g;  // [k_tiles, steps, kParts, 16, 16 positions, 2]
    int64_t first, steps;
  };

  // The pixels of both halves of a crew's share.
  struct Stretches {
    std::vector<std::array<LinePixels, 2>> u;  // of each plane
    std::array<LinePixels, 2> g;
  };

  Stretches stretches_of(const Range& all) const {
    const std::array<LinePixels, 2> u{LinePixels(plan_.in_step_w), LinePixels(plan_.in_step_w)};
    Stretches stretches{{static_cast<size_t>(line_.planes()), u}, {LinePixels(1), LinePixels(1)}};
    const int64_t count = (all.end - all.begin) * kTileSide, pitch = line_.pitch();
    for (int half = 0; half < 2 && count > 0; ++half) {
      const int64_t first = all.begin * kTileTerms + half * count;
      const int64_t begin = first / pitch, end = (first + count + pitch - 1) / pitch, before = first - begin * pitch;
      line_.each_stretch(begin, end, [&](int64_t plane, int64_t position, int64_t pixel, int64_t n) {
        if (pixel >= 0) stretches.u[plane][half].add(position - before, pixel, n);
      });
      line_.each_output(outputs_, begin, std::min(end, line_.rows()), [&](int64_t position, int64_t pixel, int64_t n) {
        stretches.g[half].add(position - before, pixel, n);
      });
    }
    return stretches;
  }

  // Strips that begin with a piece of those before take turns with them.
  Block block_at(int64_t first, const Range& all, const Crew& crew) const {
    const int64_t steps = std::clamp<int64_t>(all.end - all.begin - first, 0, block_);
    return {u_ + (2 * crew.number + (reach_ > 0 ? first / block_ % 2 : 0)) * u_size_, g_ + crew.number * g_size_, first,
            steps};
  }

  // The steps of g and of a plane of u that this member packs.
  Range own_steps(const Block& block, const Crew& crew, bool is_u) const {
    const int64_t kept = is_u && block.first > 0 ? reach_ : 0;
    const Range steps = crew.share_of_member(block.steps + (is_u ? reach_ : 0) - kept);
    return {steps.begin + kept, steps.end + kept};
  }

  // What taps have read beyond the block before begins the strips; the rest is read.
  void pack(const Block& block, const Block& before, Stretches& stretches, const Crew& crew, float* staged) const {
    if (block.first > 0) {
      const Range strips = crew.share_of_member(line_.planes() * c_tiles_ * kParts);
      for (int64_t strip = strips.begin; strip < strips.end; ++strip)
        std::copy_n(before.u + strip * strip_ + before.steps * kTileNumbers, reach_ * kTileNumbers,
                    block.u + strip * strip_);
    }
    const Range u_steps = own_steps(block, crew, true), g_steps = own_steps(block, crew, false);
    // Calls f(tile of channels as it is read, which tile) for each, and between them asks for the next step's pixels.
    const auto each_tile = [&](const Source<float>& source, std::array<LinePixels, 2>& halves, int64_t step,
                               int64_t count, const auto& f) {
      const int64_t first = (block.first + step) * kTileSide, next = first + kTileSide;
      for (int half = 0; half < 2; ++half) halves[half].read(source, first, kTileSide, count, staged + half * kSquare);
      for (int64_t tile = 0; tile < count; ++tile) {
        const int64_t begin = tile * kTileSide / count, end = (tile + 1) * kTileSide / count;
        for (const LinePixels& half : halves) half.prefetch(source, next + begin, end - begin);
        f(staged + tile * 2 * kSquare, tile);
      }
    };
    BFloat16* to = block.u;
    for (auto& plane : stretches.u) {
      for (int64_t step = u_steps.begin; step < u_steps.end; ++step)
        each_tile(u_source_, plane, step, c_tiles_, [&](const float* from, int64_t tile) {
          pack_squares<kParts>(from, to + tile * kParts * strip_ + step * kTileNumbers, strip_);
        });
      to += c_tiles_ * kParts * strip_;
    }
    for (int64_t step = g_steps.begin; step < g_steps.end; ++step)
      each_tile(g_source_, stretches.g, step, k_tiles_, [&](const float* from, int64_t tile) {
        alignas(64) float turned[2 * kSquare];
        for (const int64_t half : {int64_t{0}, kSquare})
          transpose_square(from + half, kTileSide, turned + half, kTileSide);
        pack_squares<kParts>(turned, block.g + (tile * block_ + step) * kParts * kTileNumbers, kTileNumbers);
      });
  }

  static int64_t blocks(int64_t tiles) { return (tiles + 1) / 2; }
  int64_t inputs_per_group() const { return shape_.channels / shape_.groups; }
  int64_t outputs_per_group() const { return shape_.out_channels / shape_.groups; }
  // Whether any of these outputs is a sum of any of these inputs.
  bool is_connected(int64_t k, int64_t c) const {
    const int64_t last = std::min((k + 1) * kBlockSide, shape_.out_channels) - 1;
    const int64_t begin = k * kBlockSide / outputs_per_group() * inputs_per_group();
    const int64_t end = (last / outputs_per_group() + 1) * inputs_per_group();
    return c * kBlockSide < end && begin < (c + 1) * kBlockSide;
  }
  int64_t taps() const { return static_cast<int64_t>(outputs_.taps.size()); }

  void multiply(Tiles& tiles, const Block& block, const Crew& crew, float* sums) const {
    const Range items = crew.share_of_member(static_cast<int64_t>(pairs_.size()));
    for (int64_t item = items.begin, end; item < items.end; item = end) {
      end = item + 1;
      while (end < items.end && pairs_[end].k == pairs_[item].k) ++end;
      for (int64_t step = 0; step < block.steps; step += kPiece)
        for (int64_t i = item; i < end; ++i)
          multiply_piece(tiles, block, pairs_[i].k, pairs_[i].c, step, sums + i * taps() * kSums);
    }
  }

  // All taps of 32 x 32 pairs of channels.
  void multiply_piece(Tiles& tiles, const Block& block, int64_t k, int64_t c, int64_t step, float* sums) const {
    const bool is_high = 2 * k + 1 < k_tiles_, is_wide = 2 * c + 1 < c_tiles_;
    const auto product = is_high
                             ? is_wide ? multiply_steps<kParts, 2, 2, Nothing> : multiply_steps<kParts, 2, 1, Nothing>
                         : is_wide ? multiply_steps<kParts, 1, 2, Nothing>
                                   : multiply_steps<kParts, 1, 1, Nothing>;
    const int64_t k_tile = block_ * kParts * kTileNumbers, c_tile = kParts * strip_;
    const Operand a{block.g + 2 * k * k_tile + step * kParts * kTileNumbers, kTileBytes, k_tile, kTileNumbers};
    const int64_t count = std::min(kPiece, block.steps - step);
    for (const Tap& tap : outputs_.taps) {
      const BFloat16* strip = block.u + (line_.plane(tap) * c_tiles_ + 2 * c) * c_tile;
      const Operand b{strip + (line_.shift(tap) + step * kTileSide) * kTileTerms, kTileBytes, c_tile, strip_};
      const bool adds = block.first + step > 0;
      if constexpr (kParts < 3) {
        product(tiles, a, kSteps.data(), count, b, kTileNumbers, sums, kBlockSide, adds, {});
      } else {
        // A sum of sums: rounding grows with the root of a piece's length, not of all positions. Only here it shows.
        alignas(64) float piece[kSums];
        product(tiles, a, kSteps.data(), count, b, kTileNumbers, piece, kBlockSide, false, {});
        add(piece, sums, adds);
      }
      sums += kSums;
    }
  }

  static void add(const float* piece, float* sums, bool adds) {
    constexpr int N = kLanes<float>;
    for (int64_t i = 0; i < kSums; i += N) store(sums + i, adds ? load(sums + i) + load(piece + i) : load(piece + i));
  }

  // Adds up the crews' sums, in their order, for some of the pairs.
  void write(const Range& items, int crews, float* g_weight, const FilterStrides& w) const {
    for (int64_t item = items.begin; item < items.end; ++item) {
      const int64_t k0 = pairs_[item].k * kBlockSide, c0 = pairs_[item].c * kBlockSide;
      const int64_t rows = std::min(kBlockSide, shape_.out_channels - k0);
      const int64_t columns = std::min(kBlockSide, shape_.channels - c0);
      float* sums = sums_ + item * taps() * kSums;
      for (const Tap& tap : outputs_.taps) {
        for (int crew = 1; crew < crews; ++crew)
          for (int64_t i = 0; i < kSums; ++i) sums[i] += sums[crew * sums_size_ + i];
        float* to = g_weight + tap.r * w.r + tap.s * w.s;
        for (int64_t k = 0; k < rows; ++k) {
          const int64_t group = (k0 + k) / outputs_per_group() * inputs_per_group();  // its first input
          const int64_t end = std::min(columns, group + inputs_per_group() - c0);
          for (int64_t c = std::max<int64_t>(group - c0, 0); c < end; ++c)
            to[(k0 + k) * w.k + (c0 + c - group) * w.c] = sums[k * kBlockSide + c];
        }
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
  std::vector<Pair> pairs_;                // of which there are products
  int64_t steps_, block_ = 0, reach_ = 0;  // of 2 x 16 positions: in all, of a block, and what taps read beyond it
  int64_t strip_;                          // elements of a part of a tile of u
  int64_t u_size_, g_size_;                // of a block
  int64_t sums_size_, staged_size_;        // of a crew, of a thread
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
