// The weight gradient of a grouped convolution: for each super-group a product over pixels, of g and of the strips as
// they lie. A run of taps is a stretch of columns of the result, and each pixel's is one step after its neighbour's.
//
// The result is small: each thread has blocks of pixels and an accumulator of its own.
#include "gather.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// Of L2, for a block's strips and gradients.
constexpr int64_t kBlockBytes = 320 * 1024;

template <class S>
class StripWgrad {
 public:
  StripWgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads)
      : shape_(shape),
        plan_(GatherPlan::forward(shape)),
        taps_(plan_.phases.front().taps),
        groups_(SuperGroups::of(Filter<S>::forward(nullptr, shape, {}))),
        runs_(runs_of(taps_, groups_.inputs)),
        strip_(plan_, groups_),
        u_source_(u),
        g_source_(g),
        result_rows_(round_up(groups_.outputs, kColumnRows)) {
    for (const Run& run : runs_) columns_ += round_up(run.length, kLanes<S>);
    const int64_t row = plan_.in_step_h * strip_.row_elements() * groups_.count + shape.out_width * shape.out_channels;
    rows_ = std::clamp<int64_t>(kBlockBytes / static_cast<int64_t>(sizeof(S)) / row, 1, shape.batch * shape.out_height);
    const int64_t pixels = rows_ * shape.out_width;
    group_size_ = strip_.size(rows_, rows_ / shape.out_height + 2);
    g_stride_ = result_rows_ * pixels;
    sums_size_ = groups_.count * result_rows_ * columns_;
    strips_ = workspace<S>(Slot::strips, groups_.count * group_size_ * threads);
    gradients_ = workspace<S>(Slot::gradients, groups_.count * g_stride_ * threads);
    sums_ = workspace<S>(Slot::sums, sums_size_ * threads);
  }

  void run(int part, int parts, S* g_weight, const FilterStrides& strides) {
    const Own own{strips_ + part * groups_.count * group_size_,
                  {gradients_ + part * groups_.count * g_stride_, result_rows_, groups_.outputs, g_stride_},
                  sums_ + part * sums_size_};
    const Range all = share(shape_.batch * shape_.out_height, part, parts);
    if (all.begin == all.end) std::fill_n(own.sums, sums_size_, S(0));
    for (int64_t row = all.begin; row < all.end; row += rows_) {
      const int64_t end = std::min(row + rows_, all.end), next = std::min(end + rows_, all.end);
      const std::vector<Segment> segments = segments_of(row, end, shape_.out_height);
      fill(segments, own);
      g_source_.read(row * shape_.out_width, 1, (end - row) * shape_.out_width, own.g);
      Ahead ahead;
      g_source_.announce(end * shape_.out_width, (next - end) * shape_.out_width, ahead);
      for (const Segment& segment : segments_of(end, next, shape_.out_height))
        strip_.announce(segment, u_source_, ahead);
      multiply(segments, own, (end - row) * shape_.out_width, row > all.begin, ahead);
    }
    barrier(parts);
    write(share(shape_.out_channels, part, parts), parts, g_weight, strides);
  }

 private:
  // A thread's.
  struct Own {
    S* strips;
    Rows<S> g;  // super-group by super-group
    S* sums;
  };

  void fill(const std::vector<Segment>& segments, const Own& own) const {
    S* strip = own.strips;
    for (const Segment& segment : segments) {
      strip_.fill(segment, u_source_, strip, group_size_);
      strip += strip_.size(segment);
    }
  }

  void multiply(const std::vector<Segment>& segments, const Own& own, int64_t pixels, bool adds, Ahead& ahead) const {
    ahead.spread(groups_.count * pixels * (result_rows_ / kColumnRows) * ((columns_ + kPanel<S> - 1) / kPanel<S>));
    for (int64_t group = 0; group < groups_.count; ++group) {
      S* sums = own.sums + group * result_rows_ * columns_;
      for (const Run& run : runs_) {
        multiply_run(segments, own, group, run, sums, adds, ahead);
        sums += round_up(run.length, kLanes<S>);
      }
    }
  }

  // One super-group's columns of the result for one run of taps.
  void multiply_run(const std::vector<Segment>& segments, const Own& own, int64_t group, const Run& run, S* sums,
                    bool adds, Ahead& ahead) const {
    const S *strip = own.strips + group * group_size_, *g = own.g.data + group * g_stride_;
    for (const Segment& segment : segments) {
      const int64_t rows = segment.end - segment.begin;
      const Lines lines{rows, shape_.out_width, plan_.in_step_w * groups_.inputs,
                        plan_.in_step_h * strip_.row_elements()};
      const S* from = strip_.at(segment, strip, segment.begin, 0) + strip_.offset(run.dy, run.dx);
      for (int64_t column = 0; column < run.length; column += kPanel<S>)
        for (int64_t k = 0; k < result_rows_; k += kColumnRows)
          multiply_columns_panel(g + k, result_rows_, from + column, lines, run.length - column,
                                 sums + k * columns_ + column, columns_, adds, ahead.take(rows * shape_.out_width));
      strip += strip_.size(segment);
      g += rows * shape_.out_width * result_rows_;
      adds = true;
    }
  }

  // Adds up the threads' sums, in their order. Of a super-group's columns, those of the output's own group count.
  void write(const Range& outputs, int parts, S* g_weight, const FilterStrides& w) const {
    const int64_t inputs_per_group = shape_.channels / shape_.groups;
    const int64_t outputs_per_group = shape_.out_channels / shape_.groups;
    for (int64_t o = outputs.begin; o < outputs.end; ++o) {
      const int64_t group = o / groups_.outputs, local = o % groups_.outputs;
      S* sums = sums_ + (group * result_rows_ + local) * columns_;
      for (int part = 1; part < parts; ++part)
        for (int64_t c = 0; c < columns_; ++c) sums[c] += sums[part * sums_size_ + c];
      sums += local / outputs_per_group * inputs_per_group;
      auto tap = taps_.begin();
      for (const Run& run : runs_) {
        for (int64_t column = 0; column < run.length; column += groups_.inputs, ++tap) {
          S* to = g_weight + o * w.k + tap->r * w.r + tap->s * w.s;
          for (int64_t c = 0; c < inputs_per_group; ++c) to[c * w.c] = sums[column + c];
        }
        sums += round_up(run.length, kLanes<S>);
      }
    }
  }

  const ConvShape& shape_;
  GatherPlan plan_;
  const std::vector<Tap>& taps_;
  SuperGroups groups_;
  std::vector<Run> runs_;
  Strip<S> strip_;
  const Source<S>&u_source_, &g_source_;
  int64_t result_rows_, columns_ = 0;          // of a super-group's result, padded
  int64_t rows_;                               // of outputs in a block
  int64_t group_size_, g_stride_, sums_size_;  // of a block's strips and gradients for one super-group; of a thread
  S *strips_, *gradients_, *sums_;
};

}  // namespace

template <class S>
void strip_wgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads, S* g_weight,
                 const FilterStrides& strides) {
  StripWgrad<S> wgrad(shape, u, g, threads);
  parallel(threads, [&](int part, int parts) { wgrad.run(part, parts, g_weight, strides); });
}

template void strip_wgrad<float>(const ConvShape&, const Source<float>&, const Source<float>&, int, float*,
                                 const FilterStrides&);
template void strip_wgrad<double>(const ConvShape&, const Source<double>&, const Source<double>&, int, double*,
                                  const FilterStrides&);

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
