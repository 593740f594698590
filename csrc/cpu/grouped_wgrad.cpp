// The weight gradient of a convolution in narrow groups of kWidth channels; of one, it is depthwise. Lanes are channels
// of the input, and each tap has a sum for each of them and each j: of input p and gradient p ^ j. A block of pixels
// lies in L2, input and gradient, while sums of some taps are in registers.
//
// The result is small: each thread has blocks of pixels and an accumulator of its own.
#include "ahead.h"
#include "gather.h"
#include "groups.h"
#include "parallel.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// Of L2, for a block's strip and gradients.
constexpr int64_t kBlockBytes = 320 * 1024;

template <class S, int kWidth>
class GroupedWgrad {
  using Lanes = GroupLanes<S, kWidth>;
  static constexpr int N = kLanes<S>;
  // Taps whose sums are in registers together: all of a 3x3 filter, or a row of it; and of those left over.
  static constexpr int kFewer = 4 * kWidth <= kRegisters ? 3 : 1, kTogether = kWidth == 1 ? 9 : kFewer;

 public:
  GroupedWgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads)
      : shape_(shape),
        plan_(GatherPlan::forward(shape)),
        taps_(plan_.phases.front().taps),
        registers_(registers_of<S>(shape.channels)),
        strip_(plan_, registers_),
        u_source_(u),
        g_source_(g),
        sums_size_(round_up(registers_.count * tap_count() * kWidth * N, 64)) {
    for (const Tap& tap : taps_) offsets_.push_back(strip_.offset(tap.dy, tap.dx));
    const int64_t row = (plan_.in_step_h * strip_.row_elements() + shape.out_width * N) * registers_.count;
    rows_ = std::clamp<int64_t>(kBlockBytes / static_cast<int64_t>(sizeof(S)) / row, 1, shape.batch * shape.out_height);
    u_stride_ = round_up(strip_.size(rows_, rows_ / shape.out_height + 2), N);
    g_stride_ = rows_ * shape.out_width * N;
    strips_ = workspace<S>(Slot::strips, u_stride_ * registers_.count * threads);
    gradients_ = workspace<S>(Slot::gradients, g_stride_ * registers_.count * threads);
    sums_ = workspace<S>(Slot::sums, sums_size_ * threads);
  }

  void run(int part, int parts, S* g_weight, const FilterStrides& strides) {
    S *strip = strips_ + part * u_stride_ * registers_.count, *g = gradients_ + part * g_stride_ * registers_.count,
      *sums = sums_ + part * sums_size_;
    std::fill_n(sums, sums_size_, S(0));
    const Range all = share(shape_.batch * shape_.out_height, part, parts);
    for (int64_t row = all.begin; row < all.end; row += rows_) {
      const int64_t end = std::min(row + rows_, all.end), next = std::min(end + rows_, all.end);
      const int64_t width = shape_.out_width;
      g_source_.read(row * width, 1, (end - row) * width, {g, N, N, g_stride_});
      Ahead ahead;
      g_source_.announce(end * width, (next - end) * width, ahead);
      for (const Segment& segment : segments_of(end, next, shape_.out_height))
        strip_.announce(segment, u_source_, ahead);
      ahead.spread((end - row) * passes());
      add(segments_of(row, end, shape_.out_height), strip, g, sums, ahead);
    }
    barrier(parts);
    write(share(shape_.channels, part, parts), parts, g_weight, strides);
  }

 private:
  int64_t tap_count() const { return static_cast<int64_t>(taps_.size()); }
  // How often the products go over a block.
  int64_t passes() const {
    const int64_t left = tap_count() % kTogether;
    return registers_.count * (tap_count() / kTogether + left / kFewer + left % kFewer);
  }

  // Adds a block's products to the sums [registers of channels, taps, kWidth, kLanes].
  void add(const std::vector<Segment>& segments, S* strip, const S* g, S* sums, Ahead& ahead) const {
    for (const Segment& segment : segments) {
      strip_.fill(segment, u_source_, strip, u_stride_);
      const S* u = strip_.at(segment, strip, segment.begin, 0);
      const int64_t rows = segment.end - segment.begin;
      S* sum = sums;
      for (int64_t r = 0; r < registers_.count; ++r) {
        int64_t tap = 0;
        for (; tap + kTogether <= tap_count(); tap += kTogether) add_taps<kTogether>(rows, u, g, r, tap, sum, ahead);
        for (; tap + kFewer <= tap_count(); tap += kFewer) add_taps<kFewer>(rows, u, g, r, tap, sum, ahead);
        for (; tap < tap_count(); ++tap) add_taps<1>(rows, u, g, r, tap, sum, ahead);
      }
      strip += strip_.size(segment);
      g += rows * shape_.out_width * N;
    }
  }

  // Those of kTaps taps from `tap` on, and of register r of channels, to the next sums.
  template <int kTaps>
  void add_taps(int64_t rows, const S* u, const S* g, int64_t r, int64_t tap, S*& sums, Ahead& ahead) const {
    const int64_t step = plan_.in_step_w * N, row_step = plan_.in_step_h * strip_.row_elements();
    Vector<S> totals[kTaps][kWidth] = {};
    const S* taps[kTaps];
    u += r * u_stride_;
    for (int64_t row = 0; row < rows; ++row, u += row_step) {
      const Prefetch wanted = ahead.take(1);
      prefetch(wanted.begin, wanted.bytes_per_step);
      for (int t = 0; t < kTaps; ++t) taps[t] = u + offsets_[tap + t];
      for (int64_t i = 0; i < shape_.out_width; ++i, g += N) {
        Vector<S> gradient{};
        Lanes::each([&](auto j) {
          if (Lanes::within(j) == 0) gradient = load(g + (r ^ Lanes::beside(j)) * g_stride_);
          const Vector<S> exchanged = Lanes::template exchange<j>(gradient);
#pragma GCC unroll 9
          for (int t = 0; t < kTaps; ++t) totals[t][j] += exchanged * load(taps[t] + i * step);
        });
      }
    }
    for (int t = 0; t < kTaps; ++t)
      for (int j = 0; j < kWidth; ++j, sums += N) store(sums, load(sums) + totals[t][j]);
  }

  // Adds up the threads' sums, in their order.
  void write(const Range& channels, int parts, S* g_weight, const FilterStrides& w) const {
    for (int64_t c = channels.begin; c < channels.end; ++c)
      for (int64_t tap = 0; tap < tap_count(); ++tap)
        for (int j = 0; j < kWidth; ++j) {
          const S* sums = sums_ + ((c / N * tap_count() + tap) * kWidth + j) * N + c % N;
          S sum = 0;
          for (int part = 0; part < parts; ++part) sum += sums[part * sums_size_];
          g_weight[(c ^ j) * w.k + c % kWidth * w.c + taps_[tap].r * w.r + taps_[tap].s * w.s] = sum;
        }
  }

  const ConvShape& shape_;
  GatherPlan plan_;
  const std::vector<Tap>& taps_;
  SuperGroups registers_;
  Strip<S> strip_;
  const Source<S>&u_source_, &g_source_;
  std::vector<int64_t> offsets_;  // of the taps, in the strip
  int64_t rows_;                  // of outputs in a block
  int64_t u_stride_, g_stride_;   // from a register of channels to the next, of a block
  int64_t sums_size_;             // of a thread
  S *strips_, *gradients_, *sums_;
};

}  // namespace

template <class S>
void grouped_wgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads, S* g_weight,
                   const FilterStrides& strides) {
  visit_group_width(shape.channels / shape.groups, [&](auto width) {
    GroupedWgrad<S, width> wgrad(shape, u, g, threads);
    parallel(threads, [&](int part, int parts) { wgrad.run(part, parts, g_weight, strides); });
  });
}

template void grouped_wgrad<float>(const ConvShape&, const Source<float>&, const Source<float>&, int, float*,
                                   const FilterStrides&);
template void grouped_wgrad<double>(const ConvShape&, const Source<double>&, const Source<double>&, int, double*,
                                    const FilterStrides&);

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
