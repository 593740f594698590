// Convolution in narrow groups of kWidth channels, forward and dgrad; of one, it is depthwise. Lanes are channels, and
// there is no product of matrices, which would multiply zeros: input p and output p ^ j of a group meet in lane p, in a
// sum for each j, and at the end the sums change lanes. A block of the input lies in L2, normed and padded, and each
// output's taps read it where it lies.
#include "ahead.h"
#include "gather.h"
#include "groups.h"
#include "parallel.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// Of L2, for a block's strip.
constexpr int64_t kStripBytes = 256 * 1024;
// Neighbouring outputs whose sums are in registers together.
template <int kWidth>
constexpr int kTogether = std::max(1, std::min(8, kRegisters / 2 / kWidth));

// What the threads share.
template <class S>
struct Blocks {
  Blocks(const GatherPlan& plan, int64_t channels, int threads)
      : plan(plan), channels(channels), registers(registers_of<S>(channels)), strip(plan, registers) {
    const int64_t total = plan.batch * plan.out_height;
    const int64_t row_bytes = strip.row_elements() * registers.count * static_cast<int64_t>(sizeof(S));
    rows = std::clamp<int64_t>(kStripBytes / row_bytes * plan.out_step_h / plan.in_step_h, 1,
                               (total + threads - 1) / threads);
    register_stride = round_up(strip.size(rows, rows / plan.out_height + 2), kLanes<S>);
  }

  const GatherPlan& plan;
  int64_t channels;
  SuperGroups registers;
  Strip<S> strip;
  int64_t rows;             // of outputs, in a block
  int64_t register_stride;  // from a register of channels to the next, in its strip
};

template <class S, int kWidth>
class Worker {
  using Lanes = GroupLanes<S, kWidth>;
  static constexpr int N = kLanes<S>;

 public:
  Worker(const Blocks<S>& blocks, const S* packed, const Source<S>& source, Sink<S>& sink, int thread, S* strip)
      : b_(blocks), plan_(blocks.plan), packed_(packed), source_(source), sink_(sink), thread_(thread), strip_(strip) {}

  // The outputs of these rows; those until `next` are the next to come.
  void run(int64_t begin, int64_t end, int64_t next) {
    const int64_t first_pixel = begin * plan_.out_width, pixels = (end - begin) * plan_.out_width;
    Ahead ahead;
    sink_.announce(first_pixel, pixels, ahead);
    for (const Segment& segment : segments_of(end, next, plan_.out_height)) b_.strip.announce(segment, source_, ahead);
    ahead.spread(pixels * b_.registers.count);
    S *const rows = sink_.rows(thread_, first_pixel), *out = rows, *strip = strip_;
    for (const Segment& segment : segments_of(begin, end, plan_.out_height)) {
      b_.strip.fill(segment, source_, strip, b_.register_stride);
      const S* packed = packed_;
      for (const Phase& phase : plan_.phases) {
        offsets_.clear();
        for (const Tap& tap : phase.taps) offsets_.push_back(b_.strip.offset(tap.dy, tap.dx));
        for (int64_t r = 0; r < b_.registers.count; ++r) {
          convolve(segment, phase, r, packed, strip, out, ahead);
          packed += static_cast<int64_t>(phase.taps.size()) * kWidth * N;
        }
      }
      strip += b_.strip.size(segment);
      out += (segment.end - segment.begin) * plan_.out_width * sink_.row_stride();
    }
    sink_.finish(thread_, rows, first_pixel, pixels);
  }

 private:
  // A register of channels of a phase's outputs of a segment, the first of which is to be written to `out`.
  void convolve(const Segment& segment, const Phase& phase, int64_t r, const S* packed, const S* strip, S* out,
                Ahead& ahead) {
    const Range rows = indices_in(segment.begin, segment.end, phase.first_h, plan_.out_step_h);
    const int64_t columns = indices_in(0, plan_.out_width, phase.first_w, plan_.out_step_w).end;
    const int lanes = static_cast<int>(std::min<int64_t>(N, b_.channels - r * N));
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t h = phase.first_h + i * plan_.out_step_h - segment.begin;
      for (int64_t j = 0; j < columns; j += kTogether<kWidth>) {
        const int64_t w = phase.first_w + j * plan_.out_step_w;
        const int64_t count = std::min<int64_t>(kTogether<kWidth>, columns - j);
        const Prefetch wanted = ahead.take(count);
        prefetch(wanted.begin, wanted.bytes_per_step * count);
        const S* from = b_.strip.at(segment, strip, i, j);
        S* to = out + (h * plan_.out_width + w) * sink_.row_stride() + r * N;
        convolve_pixels<kTogether<kWidth>>(count, r, packed, from, to, lanes);
      }
    }
  }

  // `count` neighbouring outputs: kCount of them together, the rest by fewer.
  template <int kCount>
  void convolve_pixels(int64_t count, int64_t r, const S* packed, const S* from, S* to, int lanes) const {
    const int64_t in_step = plan_.in_step_w * N, out_step = plan_.out_step_w * sink_.row_stride();
    if (count >= kCount) {
      Vector<S> sums[kWidth][kCount] = {};
      multiply(r, packed, from, in_step, sums);
      for (int i = 0; i < kCount; ++i) store(to + i * out_step, sums[0][i], lanes);
      count -= kCount;
      from += kCount * in_step;
      to += kCount * out_step;
    }
    if constexpr (kCount > 1)
      if (count > 0) convolve_pixels<kCount / 2>(count, r, packed, from, to, lanes);
  }

  // Leaves the outputs in sums[0].
  template <int kCount>
  void multiply(int64_t r, const S* packed, const S* from, int64_t in_step, Vector<S> (&sums)[kWidth][kCount]) const {
    for (const int64_t offset : offsets_) {
      Vector<S> x[kCount];
#pragma GCC unroll 8
      for (int j = 0; j < kWidth; ++j) {
        if (Lanes::within(j) == 0) {
          const S* at = from + (r ^ Lanes::beside(j)) * b_.register_stride + offset;
#pragma GCC unroll 8
          for (int i = 0; i < kCount; ++i) x[i] = load(at + i * in_step);
        }
        const Vector<S> w = load(packed);
        packed += N;
#pragma GCC unroll 8
        for (int i = 0; i < kCount; ++i) sums[j][i] += w * x[i];
      }
    }
    Lanes::each([&](auto j) {
      for (int i = 0; j > 0 && i < kCount; ++i) sums[0][i] += Lanes::template exchange<j>(sums[j][i]);
    });
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
int64_t packed_grouped_size(const GatherPlan& plan, const Filter<S>& filter) {
  int64_t taps = 0;
  for (const Phase& phase : plan.phases) taps += static_cast<int64_t>(phase.taps.size());
  return taps * filter.inputs_per_group * round_up(filter.outputs, kLanes<S>);
}

// [registers of channels, taps, kWidth, kLanes], phase by phase.
template <class S>
void pack_grouped(const GatherPlan& plan, const Filter<S>& filter, S* packed) {
  visit_group_width(filter.inputs_per_group, [&](auto width) {
    using Lanes = GroupLanes<S, width>;
    constexpr int N = kLanes<S>;
    for (const Phase& phase : plan.phases)
      for (int64_t r = 0; r * N < filter.outputs; ++r)
        for (const Tap& tap : phase.taps) {
          const S* from = filter.data + tap.r * filter.r_stride + tap.s * filter.s_stride;
          for (int j = 0; j < width; ++j)
            for (int64_t c = r * N; c < (r + 1) * N; ++c) {
              const int64_t output = c ^ Lanes::within(j), input = (r ^ Lanes::beside(j)) * N + c % N;
              *packed++ = c < filter.outputs ? from[filter.output_offset(output) + filter.input_offset(input)] : S(0);
            }
        }
  });
}

template <class S>
void grouped_conv(const GatherPlan& plan, const Filter<S>& filter, const S* packed, const Source<S>& source,
                  Sink<S>& sink, int threads) {
  const Blocks<S> blocks(plan, filter.outputs, threads);
  const int64_t size = blocks.register_stride * blocks.registers.count;
  S* strips = workspace<S>(Slot::strips, size * threads);
  sink.start(threads, blocks.rows * plan.out_width);
  visit_group_width(filter.inputs_per_group, [&](auto width) {
    parallel(threads, [&](int part, int parts) {
      Worker<S, width> worker(blocks, packed, source, sink, part, strips + part * size);
      const Range all = share(plan.batch * plan.out_height, part, parts);
      for (int64_t row = all.begin; row < all.end; row += blocks.rows) {
        const int64_t end = std::min(row + blocks.rows, all.end);
        worker.run(row, end, std::min(end + blocks.rows, all.end));
      }
    });
  });
}

#define INSTANTIATE(S)                                                          \
  template int64_t packed_grouped_size<S>(const GatherPlan&, const Filter<S>&); \
  template void pack_grouped<S>(const GatherPlan&, const Filter<S>&, S*);       \
  template void grouped_conv<S>(const GatherPlan&, const Filter<S>&, const S*, const Source<S>&, Sink<S>&, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
