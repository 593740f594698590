// The weight gradient of a direct convolution: a product over pixels, of g as it lies and of what each output reads.
//
// All threads gather one block of pixels together and then each multiplies a share of the result's columns by all of
// it, so that there is one accumulator, and sums do not depend on the number of threads.
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

template <class S>
class GatherWgrad {
 public:
  GatherWgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads)
      : shape_(shape),
        plan_(GatherPlan::forward(shape)),
        taps_(plan_.phases.front().taps),
        groups_(SuperGroups::of(Filter<S>::forward(nullptr, shape, {}))),
        runs_(runs_of(taps_, groups_)),
        strip_(plan_, shape.channels),
        pointwise_(is_pointwise(plan_, groups_)),
        u_(u),
        g_(g),
        columns_(round_up(static_cast<int64_t>(taps_.size()) * groups_.inputs, kLanes<S>)),
        group_rows_(round_up(groups_.outputs, kColumnRows)) {
    const int64_t each = (columns_ + group_rows_) * static_cast<int64_t>(sizeof(S));
    const int64_t pixels = std::clamp<int64_t>(kBlockBytes / each, 128, 512);
    rows_ = std::clamp<int64_t>(pixels / shape.out_width, 1, shape.batch * shape.out_height);
    pixels_ = rows_ * shape.out_width;
    // One segment at a time; all of a block where fewer threads come than were asked for.
    strip_size_ = pointwise_ ? 0 : strip_.size(std::min(rows_, shape.out_height), 1);
    strips_ = workspace<S>(Slot::strips, strip_size_ * threads);
    u_size_ = round_up(columns_, kPanel<S>) * pixels_;
    columns_of_u_ = workspace<S>(Slot::tiles, groups_.count * u_size_);
    // A super-group's outputs, where they are not whole chunks, are one.
    const int64_t chunk =
        groups_.count == 1 || groups_.outputs % kColumnChunk<S> == 0 ? kColumnChunk<S> : groups_.outputs;
    const int64_t row = round_up(chunk, kColumnChunk<S>);
    g_size_ = (groups_.outputs + chunk - 1) / chunk * row * pixels_;
    gradients_ = {workspace<S>(Slot::gradients, groups_.count * g_size_), row, chunk, row * pixels_};
    sums_ = workspace<S>(Slot::sums, groups_.count * group_rows_ * columns_);
  }

  void run(int part, int parts, S* g_weight, const FilterStrides& strides) {
    const int64_t total = shape_.batch * shape_.out_height;
    for (int64_t row = 0; row < total; row += rows_) {
      const int64_t rows = std::min(rows_, total - row);
      const Range share_of_rows = share(rows, part, parts);
      gather(row, share_of_rows, part);
      Ahead ahead;
      const Range next = share(std::min(rows_, total - row - rows), part, parts);
      announce(row + rows + next.begin, row + rows + next.end, ahead);
      barrier(parts);
      multiply(rows * shape_.out_width, part, parts, row > 0, ahead);
      barrier(parts);
    }
    write(share(groups_.outputs * groups_.count, part, parts), g_weight, strides);
  }

 private:
  // Rows of outputs [begin, end) of the block that begins with `row`.
  void gather(int64_t row, const Range& rows, int part) const {
    int64_t m = rows.begin * shape_.out_width;
    S* strip = strips_ + part * strip_size_;
    for (const Segment& segment : segments_of(row + rows.begin, row + rows.end, shape_.out_height)) {
      if (!pointwise_) strip_.fill(segment, u_, strip);
      for (int64_t i = segment.begin; i < segment.end; ++i, m += shape_.out_width) {
        const int64_t pixel = (segment.image * shape_.out_height + i) * shape_.out_width;
        g_.read(pixel, 1, shape_.out_width, gradients_.from_row(m));
        if (pointwise_) {
          const int64_t y = segment.image * plan_.in_height + i * plan_.in_step_h + taps_[0].dy;
          u_.read(y * plan_.in_width + taps_[0].dx, plan_.in_step_w, shape_.out_width,
                  Rows<S>::panels(columns_of_u_, pixels_).from_row(m));
        } else {
          gather_row(segment, strip, i, m);
        }
      }
    }
  }

  void announce(int64_t begin, int64_t end, Ahead& ahead) const {
    g_.announce(begin * shape_.out_width, (end - begin) * shape_.out_width, ahead);
    for (const Segment& segment : segments_of(begin, end, shape_.out_height)) strip_.announce(segment, u_, ahead);
  }

  void gather_row(const Segment& segment, const S* strip, int64_t i, int64_t m) const {
    for (int64_t group = 0; group < groups_.count; ++group) {
      const Rows<S> panels = Rows<S>::panels(columns_of_u_ + group * u_size_, pixels_);
      for (int64_t j = 0; j < shape_.out_width; ++j) {
        int64_t column = 0;
        for (const Run& run : runs_) {
          copy_columns(panels.from_row(m + j), column,
                       strip_.at(segment, strip, i, j, run.dy, run.dx) + group * groups_.inputs, run.length);
          column += run.length;
        }
      }
    }
  }

  void multiply(int64_t pixels, int part, int parts, bool adds, Ahead& ahead) const {
    const int64_t panels = (columns_ + kPanel<S> - 1) / kPanel<S>, blocks = group_rows_ / kColumnRows;
    const Range items = share(groups_.count * panels * blocks, part, parts);
    ahead.spread((items.end - items.begin) * pixels);
    for (int64_t item = items.begin, count; item < items.end; item += count) {
      const int64_t group = item / (blocks * panels), rest = item % (blocks * panels);
      const int64_t slab = rest / (kSlabBlocks * panels) * kSlabBlocks, height = std::min(kSlabBlocks, blocks - slab);
      const int64_t panel = (rest - slab * panels) / height, block = (rest - slab * panels) % height;
      count = std::min(height - block, items.end - item);
      multiply_slab(group, panel * kPanel<S>, slab + block, count, pixels, adds, ahead);
    }
  }

  // `count` blocks of kColumnRows rows of the result, in one panel of columns.
  void multiply_slab(int64_t group, int64_t column, int64_t block, int64_t count, int64_t pixels, bool adds,
                     Ahead& ahead) const {
    const S* panel = columns_of_u_ + group * u_size_ + column * pixels_;
    for (int64_t pixel = 0; pixel < pixels; pixel += kPiece, adds = true) {
      const int64_t piece = std::min(kPiece, pixels - pixel);
      for (int64_t k = block * kColumnRows; k < (block + count) * kColumnRows; k += kColumnRows)
        multiply_columns_panel(gradients_.data + group * g_size_ + k / gradients_.chunk * gradients_.chunk_stride +
                                   k % gradients_.chunk + pixel * gradients_.row_stride,
                               gradients_.row_stride, panel + pixel * kPanel<S>, piece, columns_ - column,
                               sums_ + (group * group_rows_ + k) * columns_ + column, columns_, adds,
                               ahead.take(piece));
    }
  }

  // Of a super-group's columns, those of the output's own group.
  void write(const Range& outputs, S* g_weight, const FilterStrides& w) const {
    const int64_t inputs_per_group = shape_.channels / shape_.groups;
    const int64_t outputs_per_group = shape_.out_channels / shape_.groups;
    for (int64_t o = outputs.begin; o < outputs.end; ++o) {
      const int64_t group = o / groups_.outputs, local = o % groups_.outputs;
      const S* sums = sums_ + (group * group_rows_ + local) * columns_ + local / outputs_per_group * inputs_per_group;
      for (const Tap& tap : taps_) {
        S* to = g_weight + o * w.k + tap.r * w.r + tap.s * w.s;
        for (int64_t c = 0; c < inputs_per_group; ++c) to[c * w.c] = sums[c];
        sums += groups_.inputs;
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
  const Source<S>&u_, &g_;
  int64_t columns_, group_rows_;  // of a super-group's result, padded
  int64_t rows_, pixels_;         // of outputs in a block
  int64_t u_size_, g_size_;       // of a super-group's matrices
  int64_t strip_size_;
  S *strips_, *columns_of_u_, *sums_;
  Rows<S> gradients_{};  // super-group by super-group
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
