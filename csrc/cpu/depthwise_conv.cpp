// Depthwise convolution, forward and dgrad: each channel is convolved with a filter of its own, so that lanes are
// channels and there is no product of matrices. A block of the input lies in L2, normed and padded, and each output's
// taps read it where it lies.
#include "ahead.h"
#include "gather.h"
#include "parallel.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// Of L2, for a block's strip.
constexpr int64_t kStripBytes = 256 * 1024;
// Of L1, for what the rows of a filter read.
constexpr int64_t kWindowBytes = 24 * 1024;
// Neighbouring outputs whose sums are in registers together.
constexpr int kTogether = 8;

// What the threads share.
template <class S>
struct Blocks {
  Blocks(const GatherPlan& plan, int64_t channels, int threads)
      : plan(plan), channels(channels), strip(plan, {1, channels, channels}) {
    const int64_t total = plan.batch * plan.out_height;
    const int64_t input_rows = kStripBytes / static_cast<int64_t>(sizeof(S)) / strip.row_elements();
    rows = std::clamp<int64_t>(input_rows * plan.out_step_h / plan.in_step_h, 1, (total + threads - 1) / threads);
    size = strip.size(rows, rows / plan.out_height + 2);
    const int64_t register_bytes = kLanes<S> * static_cast<int64_t>(sizeof(S));
    const int64_t line_bytes = strip.row_elements() / channels * strip.height() * register_bytes;
    together = std::max<int64_t>(1, kWindowBytes / line_bytes) * kLanes<S>;
  }

  const GatherPlan& plan;
  int64_t channels;
  Strip<S> strip;
  int64_t rows;      // of outputs, in a block
  int64_t size;      // of its strip
  int64_t together;  // channels that go over the block together, so that L1 keeps what several rows of outputs read
};

template <class S>
class Worker {
 public:
  Worker(const Blocks<S>& blocks, const S* packed, const Source<S>& source, Sink<S>& sink, int thread, S* strip)
      : b_(blocks), plan_(blocks.plan), packed_(packed), source_(source), sink_(sink), thread_(thread), strip_(strip) {}

  // The outputs of these rows; those until `next` are the next to come.
  void run(int64_t begin, int64_t end, int64_t next) {
    const int64_t first_pixel = begin * plan_.out_width, pixels = (end - begin) * plan_.out_width;
    Ahead ahead;
    sink_.announce(first_pixel, pixels, ahead);
    for (const Segment& segment : segments_of(end, next, plan_.out_height)) b_.strip.announce(segment, source_, ahead);
    ahead.spread(pixels * ((b_.channels + b_.together - 1) / b_.together));
    S *const rows = sink_.rows(thread_, first_pixel), *out = rows, *strip = strip_;
    for (const Segment& segment : segments_of(begin, end, plan_.out_height)) {
      b_.strip.fill(segment, source_, strip, 0);
      const S* packed = packed_;
      for (const Phase& phase : plan_.phases) {
        for (int64_t c = 0; c < b_.channels; c += b_.together)
          convolve(segment, phase, {c, std::min(c + b_.together, b_.channels)}, packed, strip, out, ahead);
        packed += static_cast<int64_t>(phase.taps.size()) * b_.channels;
      }
      strip += b_.strip.size(segment);
      out += (segment.end - segment.begin) * plan_.out_width * sink_.row_stride();
    }
    sink_.finish(thread_, rows, first_pixel, pixels);
  }

 private:
  // Some channels of a phase's outputs of a segment, the first of which is to be written to `out`.
  void convolve(const Segment& segment, const Phase& phase, const Range& channels, const S* packed, const S* strip,
                S* out, Ahead& ahead) {
    const Range rows = indices_in(segment.begin, segment.end, phase.first_h, plan_.out_step_h);
    const int64_t columns = indices_in(0, plan_.out_width, phase.first_w, plan_.out_step_w).end;
    offsets_.clear();
    for (const Tap& tap : phase.taps) offsets_.push_back(b_.strip.offset(tap.dy, tap.dx));
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t h = phase.first_h + i * plan_.out_step_h - segment.begin;
      for (int64_t j = 0; j < columns; j += kTogether) {
        const int64_t w = phase.first_w + j * plan_.out_step_w;
        const int64_t count = std::min<int64_t>(kTogether, columns - j);
        const Prefetch wanted = ahead.take(count);
        prefetch(wanted.begin, wanted.bytes_per_step * count);
        const S* from = b_.strip.at(segment, strip, i, j);
        S* to = out + (h * plan_.out_width + w) * sink_.row_stride();
        convolve_pixels<kTogether>(count, channels, packed, from, to);
      }
    }
  }

  // `count` neighbouring outputs: kCount of them together, the rest by fewer.
  template <int kCount>
  void convolve_pixels(int64_t count, const Range& channels, const S* packed, const S* from, S* to) const {
    const int64_t in_step = plan_.in_step_w * b_.channels, out_step = plan_.out_step_w * sink_.row_stride();
    if (count >= kCount) {
      constexpr int N = kLanes<S>;
      int64_t c = channels.begin;
      for (; c + N <= channels.end; c += N) convolve_channels<true, kCount>(c, N, packed, from, in_step, to, out_step);
      if (c < channels.end)
        convolve_channels<false, kCount>(c, static_cast<int>(channels.end - c), packed, from, in_step, to, out_step);
      count -= kCount;
      from += kCount * in_step;
      to += kCount * out_step;
    }
    if constexpr (kCount > 1)
      if (count > 0) convolve_pixels<kCount / 2>(count, channels, packed, from, to);
  }

  template <bool kFull, int kCount>
  void convolve_channels(int64_t channel, int lanes, const S* packed, const S* from, int64_t in_step, S* to,
                         int64_t out_step) const {
    Vector<S> sums[kCount] = {};
    packed += channel;
    from += channel;
    for (const int64_t offset : offsets_) {
      const Vector<S> w = kFull ? load(packed) : load(packed, lanes);
      const S* at = from + offset;
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) sums[i] += w * (kFull ? load(at + i * in_step) : load(at + i * in_step, lanes));
      packed += b_.channels;
    }
    for (int i = 0; i < kCount; ++i)
      kFull ? store(to + channel + i * out_step, sums[i]) : store(to + channel + i * out_step, sums[i], lanes);
  }

  const Blocks<S>& b_;
  const GatherPlan& plan_;
  const S* packed_;
  const Source<S>& source_;
  Sink<S>& sink_;
  int thread_;
  S* strip_;
  std::vector<int64_t> offsets_;  // of a phase's taps, in the strip
};

}  // namespace

template <class S>
int64_t packed_depthwise_size(const GatherPlan& plan, const Filter<S>& filter) {
  int64_t taps = 0;
  for (const Phase& phase : plan.phases) taps += static_cast<int64_t>(phase.taps.size());
  return taps * filter.outputs;
}

// [taps, channels], phase by phase.
template <class S>
void pack_depthwise(const GatherPlan& plan, const Filter<S>& filter, S* packed) {
  for (const Phase& phase : plan.phases)
    for (const Tap& tap : phase.taps) {
      const S* from = filter.data + tap.r * filter.r_stride + tap.s * filter.s_stride;
      for (int64_t c = 0; c < filter.outputs; ++c) *packed++ = from[filter.output_offset(c) + filter.input_offset(c)];
    }
}

template <class S>
void depthwise_conv(const GatherPlan& plan, const Filter<S>& filter, const S* packed, const Source<S>& source,
                    Sink<S>& sink, int threads) {
  const Blocks<S> blocks(plan, filter.outputs, threads);
  S* strips = workspace<S>(Slot::strips, blocks.size * threads);
  sink.start(threads, blocks.rows * plan.out_width);
  parallel(threads, [&](int part, int parts) {
    Worker<S> worker(blocks, packed, source, sink, part, strips + part * blocks.size);
    const Range all = share(plan.batch * plan.out_height, part, parts);
    for (int64_t row = all.begin; row < all.end; row += blocks.rows) {
      const int64_t end = std::min(row + blocks.rows, all.end);
      worker.run(row, end, std::min(end + blocks.rows, all.end));
    }
  });
}

#define INSTANTIATE(S)                                                            \
  template int64_t packed_depthwise_size<S>(const GatherPlan&, const Filter<S>&); \
  template void pack_depthwise<S>(const GatherPlan&, const Filter<S>&, S*);       \
  template void depthwise_conv<S>(const GatherPlan&, const Filter<S>&, const S*, const Source<S>&, Sink<S>&, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
