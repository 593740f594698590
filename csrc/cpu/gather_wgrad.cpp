// The weight gradient of a direct convolution without groups: a product over pixels, of g as it lies and of what each
// output reads. Grouped convolutions are strip_wgrad.cpp's.
//
// Where the result is small or threads are few, each has blocks of pixels and an accumulator of its own: handing over
// half a block from cache to cache takes long, and much longer where the cores have no cache in common. Else all
// threads gather one block together, and then each multiplies for a share of the result's columns.
#include "gather.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// A block of pixels, whose two matrices take about kBlockBytes of L2, is multiplied in pieces: kPiece pixels of a panel
// stay in L1 while kSlabBlocks blocks of rows of gradients go by, which stay in L2 for the next panel. The longer a
// block, the less often the result comes from memory; the shorter a piece, the less its sums round.
constexpr int64_t kBlockBytes = 320 * 1024;
constexpr int64_t kPiece = 128;
constexpr int64_t kSlabBlocks = 32;
// For an accumulator of each thread's own, in L2; and for those of few threads together, which the products ask for.
constexpr int64_t kOwnBytes = 640 * 1024, kAllBytes = 8 * 1024 * 1024;

template <class S>
class GatherWgrad {
 public:
  GatherWgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads)
      : shape_(shape),
        plan_(GatherPlan::forward(shape)),
        taps_(plan_.phases.front().taps),
        groups_{1, shape.channels, shape.out_channels},
        runs_(runs_of(taps_, shape.channels)),
        strip_(plan_, groups_),
        pointwise_(is_pointwise(plan_, groups_)),
        u_source_(u),
        g_source_(g),
        columns_(round_up(static_cast<int64_t>(taps_.size()) * shape.channels, kLanes<S>)),
        result_rows_(round_up(shape.out_channels, kColumnRows)) {
    const int64_t each = (columns_ + result_rows_) * static_cast<int64_t>(sizeof(S));
    const int64_t pixels = std::clamp<int64_t>(kBlockBytes / each, 128, 512);
    rows_ = std::clamp<int64_t>(pixels / shape.out_width, 1, shape.batch * shape.out_height);
    pixels_ = rows_ * shape.out_width;
    // One segment at a time; all of a block where fewer threads come than were asked for.
    strip_size_ = pointwise_ ? 0 : strip_.size(std::min(rows_, shape.out_height), 1);
    sums_size_ = result_rows_ * round_up(columns_, kPanel<S>);
    const int64_t sums_bytes = sums_size_ * static_cast<int64_t>(sizeof(S));
    is_alone_ = sums_bytes <= kOwnBytes || sums_bytes * threads <= kAllBytes;
    const int crews = is_alone_ ? threads : 1;
    u_size_ = round_up(columns_, kPanel<S>) * pixels_;
    g_size_ = round_up(shape.out_channels, kColumnChunk<S>) * pixels_;
    strips_ = workspace<S>(Slot::strips, strip_size_ * threads);
    u_ = workspace<S>(Slot::tiles, u_size_ * crews);
    g_ = workspace<S>(Slot::gradients, g_size_ * crews);
    sums_ = workspace<S>(Slot::sums, sums_size_ * crews);
  }

  void run(int part, int parts, S* g_weight, const FilterStrides& strides) {
    const Crew crew = Crew::of(part, parts, is_alone_);
    const Matrices own = matrices(crew.number);
    const Range all = crew.share_of_crew(shape_.batch * shape_.out_height);
    if (all.begin == all.end) std::fill_n(own.sums, sums_size_, S(0));
    const bool has_short_runs = runs_.front().length % kLanes<S> != 0;
    const Scratch<S> row_of_u(has_short_runs ? columns_ + kLanes<S> : 0);
    S* together = has_short_runs ? row_of_u.get() : nullptr;
    for (int64_t row = all.begin; row < all.end; row += rows_) {
      const int64_t rows = std::min(rows_, all.end - row);
      gather(row, crew.share_of_member(rows), strips_ + part * strip_size_, together, own);
      Ahead ahead;
      const Range next = crew.share_of_member(std::min(rows_, all.end - row - rows));
      announce(row + rows + next.begin, row + rows + next.end, ahead);
      crew.wait();
      multiply(own, rows * shape_.out_width, crew, row > all.begin, ahead);
      crew.wait();
    }
    barrier(parts);
    write(share(shape_.out_channels, part, parts), crew.crews, g_weight, strides);
  }

 private:
  // A crew's. The sums lie panel by panel, so that a thread's share is one stretch: a part of each row of the result
  // would use only some of the sets of L2.
  struct Matrices {
    Rows<S> u, g;
    S* sums;
  };

  Matrices matrices(int crew) const {
    constexpr int64_t kChunkOfG = kColumnChunk<S>;
    return {Rows<S>::panels(u_ + crew * u_size_, pixels_),
            {g_ + crew * g_size_, kChunkOfG, kChunkOfG, kChunkOfG * pixels_},
            sums_ + crew * sums_size_};
  }

  // Rows of outputs [begin, end) of the block that begins with `row`.
  void gather(int64_t row, const Range& rows, S* strip, S* together, const Matrices& to) const {
    int64_t m = rows.begin * shape_.out_width;
    for (const Segment& segment : segments_of(row + rows.begin, row + rows.end, shape_.out_height)) {
      if (!pointwise_) strip_.fill(segment, u_source_, strip, strip_size_);
      for (int64_t i = segment.begin; i < segment.end; ++i, m += shape_.out_width) {
        const int64_t pixel = (segment.image * shape_.out_height + i) * shape_.out_width;
        g_source_.read(pixel, 1, shape_.out_width, to.g.from_row(m));
        if (pointwise_) {
          const int64_t y = segment.image * plan_.in_height + i * plan_.in_step_h + taps_[0].dy;
          u_source_.read(y * plan_.in_width + taps_[0].dx, plan_.in_step_w, shape_.out_width, to.u.from_row(m));
        } else {
          gather_row(segment, strip, i, to.u.from_row(m), together);
        }
      }
    }
  }

  void announce(int64_t begin, int64_t end, Ahead& ahead) const {
    g_source_.announce(begin * shape_.out_width, (end - begin) * shape_.out_width, ahead);
    for (const Segment& segment : segments_of(begin, end, shape_.out_height))
      strip_.announce(segment, u_source_, ahead);
  }

  // Short runs, such as the stem's of 21, are put together first: whole registers then, and no chunk ends within one.
  void gather_row(const Segment& segment, const S* strip, int64_t i, const Rows<S>& to, S* together) const {
    for (int64_t j = 0; j < shape_.out_width; ++j) {
      const S* from = strip_.at(segment, strip, i, j);
      int64_t column = 0;
      S* end = together;
      for (const Run& run : runs_) {
        const S* at = from + strip_.offset(run.dy, run.dx);
        if (together)
          end = copy_over(end, at, run.length);
        else
          copy_columns(to.from_row(j), column, at, run.length);
        column += run.length;
      }
      if (together) copy_columns(to.from_row(j), 0, together, columns_);
    }
  }

  void multiply(const Matrices& own, int64_t pixels, const Crew& crew, bool adds, Ahead& ahead) const {
    const int64_t panels = (columns_ + kPanel<S> - 1) / kPanel<S>, blocks = result_rows_ / kColumnRows;
    const Range items = crew.share_of_member(panels * blocks);
    ahead.spread((items.end - items.begin) * pixels);
    for (int64_t item = items.begin, count; item < items.end; item += count) {
      const int64_t slab = item / (kSlabBlocks * panels) * kSlabBlocks, height = std::min(kSlabBlocks, blocks - slab);
      const int64_t panel = (item - slab * panels) / height, block = (item - slab * panels) % height;
      count = std::min(height - block, items.end - item);
      multiply_slab(own, panel * kPanel<S>, slab + block, count, pixels, adds, ahead);
    }
  }

  // `count` blocks of kColumnRows rows of the result, in one panel of columns.
  void multiply_slab(const Matrices& own, int64_t column, int64_t block, int64_t count, int64_t pixels, bool adds,
                     Ahead& ahead) const {
    const S* panel = own.u.data + column * pixels_;
    for (int64_t pixel = 0; pixel < pixels; pixel += kPiece, adds = true) {
      const int64_t piece = std::min(kPiece, pixels - pixel);
      for (int64_t k = block * kColumnRows; k < (block + count) * kColumnRows; k += kColumnRows) {
        const Rows<S> g = own.g.from_row(pixel);
        multiply_columns_panel(g.data + k / g.chunk * g.chunk_stride + k % g.chunk, g.row_stride,
                               panel + pixel * kPanel<S>, {1, piece, kPanel<S>, 0}, columns_ - column,
                               own.sums + column * result_rows_ + k * kPanel<S>, kPanel<S>, adds, ahead.take(piece));
      }
    }
  }

  // Adds up the crews' sums, in their order.
  void write(const Range& outputs, int crews, S* g_weight, const FilterStrides& w) const {
    std::vector<S> row(columns_ + kPanel<S>);
    for (int64_t o = outputs.begin; o < outputs.end; ++o) {
      for (int64_t column = 0; column < columns_; column += kPanel<S>) {
        const S* sums = sums_ + column * result_rows_ + o * kPanel<S>;
        std::copy_n(sums, kPanel<S>, &row[column]);
        for (int crew = 1; crew < crews; ++crew)
          for (int64_t c = 0; c < kPanel<S>; ++c) row[column + c] += sums[crew * sums_size_ + c];
      }
      const S* from = row.data();
      for (const Tap& tap : taps_) {
        S* to = g_weight + o * w.k + tap.r * w.r + tap.s * w.s;
        for (int64_t c = 0; c < shape_.channels; ++c) to[c * w.c] = *from++;
      }
    }
  }

  const ConvShape& shape_;
  GatherPlan plan_;
  const std::vector<Tap>& taps_;
  SuperGroups groups_;
  std::vector<Run> runs_;
  Strip<S> strip_;
  bool pointwise_;
  const Source<S>&u_source_, &g_source_;
  int64_t columns_, result_rows_;                     // of the result, padded
  int64_t rows_, pixels_;                             // of outputs in a block
  int64_t strip_size_, u_size_, g_size_, sums_size_;  // of a thread, and of a crew
  bool is_alone_;                                     // each thread
  S *strips_, *u_, *g_, *sums_;
};

}  // namespace

template <class S>
void gather_wgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads, S* g_weight,
                  const FilterStrides& strides) {
  GatherWgrad<S> wgrad(shape, u, g, threads);
  parallel(threads, [&](int part, int parts) { wgrad.run(part, parts, g_weight, strides); });
}

template void gather_wgrad<float>(const ConvShape&, const Source<float>&, const Source<float>&, int, float*,
                                  const FilterStrides&);
template void gather_wgrad<double>(const ConvShape&, const Source<double>&, const Source<double>&, int, double*,
                                   const FilterStrides&);

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
