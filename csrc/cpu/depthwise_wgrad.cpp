// The weight gradient of a depthwise convolution: lanes are channels, and each tap has a sum for each of them. A block
// of pixels lies in L2, input and gradient, while sums of some taps are in registers.
//
// The result is small: each thread has blocks of pixels and an accumulator of its own.
#include "ahead.h"
#include "gather.h"
#include "parallel.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// Of L2, for a block's strip and gradients.
constexpr int64_t kBlockBytes = 320 * 1024;
// Taps whose sums are in registers together: all of a 3x3 filter; and of those left over.
constexpr int kTogether = 9, kFewer = 3;

template <class S>
class DepthwiseWgrad {
 public:
  DepthwiseWgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads)
      : shape_(shape),
        channels_(shape.channels),
        plan_(GatherPlan::forward(shape)),
        taps_(plan_.phases.front().taps),
        strip_(plan_, {1, channels_, channels_}),
        u_source_(u),
        g_source_(g),
        sums_size_(round_up(tap_count() * channels_, 64)) {
    for (const Tap& tap : taps_) offsets_.push_back(strip_.offset(tap.dy, tap.dx));
    const int64_t row = plan_.in_step_h * strip_.row_elements() + shape.out_width * channels_;
    rows_ = std::clamp<int64_t>(kBlockBytes / static_cast<int64_t>(sizeof(S)) / row, 1, shape.batch * shape.out_height);
    strip_size_ = strip_.size(rows_, rows_ / shape.out_height + 2);
    gradients_size_ = round_up(rows_ * shape.out_width * channels_, 64);
    strips_ = workspace<S>(Slot::strips, strip_size_ * threads);
    gradients_ = workspace<S>(Slot::gradients, gradients_size_ * threads);
    sums_ = workspace<S>(Slot::sums, sums_size_ * threads);
  }

  void run(int part, int parts, S* g_weight, const FilterStrides& strides) {
    S *strip = strips_ + part * strip_size_, *g = gradients_ + part * gradients_size_,
      *sums = sums_ + part * sums_size_;
    std::fill_n(sums, sums_size_, S(0));
    const Range all = share(shape_.batch * shape_.out_height, part, parts);
    for (int64_t row = all.begin; row < all.end; row += rows_) {
      const int64_t end = std::min(row + rows_, all.end), next = std::min(end + rows_, all.end);
      const int64_t width = shape_.out_width;
      g_source_.read(row * width, 1, (end - row) * width, Rows<S>::plain(g, channels_));
      Ahead ahead;
      g_source_.announce(end * width, (next - end) * width, ahead);
      for (const Segment& segment : segments_of(end, next, shape_.out_height))
        strip_.announce(segment, u_source_, ahead);
      ahead.spread((end - row) * passes());
      add(segments_of(row, end, shape_.out_height), strip, g, sums, ahead);
    }
    barrier(parts);
    write(share(channels_, part, parts), parts, g_weight, strides);
  }

 private:
  int64_t tap_count() const { return static_cast<int64_t>(taps_.size()); }
  // How often the products go over a block.
  int64_t passes() const {
    const int64_t registers = (channels_ + kLanes<S> - 1) / kLanes<S>;
    const int64_t left = tap_count() % kTogether;
    return registers * (tap_count() / kTogether + left / kFewer + left % kFewer);
  }

  // Adds a block's products to the sums.
  void add(const std::vector<Segment>& segments, S* strip, const S* g, S* sums, Ahead& ahead) const {
    for (const Segment& segment : segments) {
      strip_.fill(segment, u_source_, strip, 0);
      const S* u = strip_.at(segment, strip, segment.begin, 0);
      const int64_t rows = segment.end - segment.begin;
      for (int64_t c = 0; c < channels_; c += kLanes<S>) {
        const int lanes = static_cast<int>(std::min<int64_t>(kLanes<S>, channels_ - c));
        int64_t tap = 0;
        for (; tap + kTogether <= tap_count(); tap += kTogether)
          add_taps<kTogether>(rows, u + c, g + c, lanes, tap, sums + c, ahead);
        for (; tap + kFewer <= tap_count(); tap += kFewer)
          add_taps<kFewer>(rows, u + c, g + c, lanes, tap, sums + c, ahead);
        for (; tap < tap_count(); ++tap) add_taps<1>(rows, u + c, g + c, lanes, tap, sums + c, ahead);
      }
      strip += strip_.size(segment);
      g += rows * shape_.out_width * channels_;
    }
  }

  // Those of kTaps taps from `tap` on, and of one register of channels.
  template <int kTaps>
  void add_taps(int64_t rows, const S* u, const S* g, int lanes, int64_t tap, S* sums, Ahead& ahead) const {
    lanes == kLanes<S> ? add_products<true, kTaps>(rows, u, g, lanes, tap, sums, ahead)
                       : add_products<false, kTaps>(rows, u, g, lanes, tap, sums, ahead);
  }

  template <bool kFull, int kTaps>
  void add_products(int64_t rows, const S* u, const S* g, int lanes, int64_t tap, S* sums, Ahead& ahead) const {
    const int64_t step = plan_.in_step_w * channels_, row_step = plan_.in_step_h * strip_.row_elements();
    Vector<S> totals[kTaps] = {};
    const S* taps[kTaps];
    for (int64_t row = 0; row < rows; ++row, u += row_step) {
      const Prefetch wanted = ahead.take(1);
      prefetch(wanted.begin, wanted.bytes_per_step);
      for (int t = 0; t < kTaps; ++t) taps[t] = u + offsets_[tap + t];
      for (int64_t j = 0; j < shape_.out_width; ++j, g += channels_) {
        const Vector<S> gradient = kFull ? load(g) : load(g, lanes);
#pragma GCC unroll 9
        for (int t = 0; t < kTaps; ++t)
          totals[t] += gradient * (kFull ? load(taps[t] + j * step) : load(taps[t] + j * step, lanes));
      }
    }
    for (int t = 0; t < kTaps; ++t) {
      S* sum = sums + (tap + t) * channels_;
      kFull ? store(sum, load(sum) + totals[t]) : store(sum, load(sum, lanes) + totals[t], lanes);
    }
  }

  // Adds up the threads' sums, in their order.
  void write(const Range& channels, int parts, S* g_weight, const FilterStrides& w) const {
    for (int64_t tap = 0; tap < tap_count(); ++tap)
      for (int64_t c = channels.begin; c < channels.end; ++c) {
        S sum = 0;
        for (int part = 0; part < parts; ++part) sum += sums_[part * sums_size_ + tap * channels_ + c];
        g_weight[c * w.k + taps_[tap].r * w.r + taps_[tap].s * w.s] = sum;
      }
  }

  const ConvShape& shape_;
  int64_t channels_;
  GatherPlan plan_;
  const std::vector<Tap>& taps_;
  Strip<S> strip_;
  const Source<S>&u_source_, &g_source_;
  std::vector<int64_t> offsets_;                     // of the taps, in the strip
  int64_t rows_;                                     // of outputs in a block
  int64_t strip_size_, gradients_size_, sums_size_;  // of a thread
  S *strips_, *gradients_, *sums_;
};

}  // namespace

template <class S>
void depthwise_wgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads, S* g_weight,
                     const FilterStrides& strides) {
  DepthwiseWgrad<S> wgrad(shape, u, g, threads);
  parallel(threads, [&](int part, int parts) { wgrad.run(part, parts, g_weight, strides); });
}

template void depthwise_wgrad<float>(const ConvShape&, const Source<float>&, const Source<float>&, int, float*,
                                     const FilterStrides&);
template void depthwise_wgrad<double>(const ConvShape&, const Source<double>&, const Source<double>&, int, double*,
                                      const FilterStrides&);

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
