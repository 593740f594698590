// Direct convolution in tile registers: forward and dgrad, of any geometry. Of groups narrower than a register several
// are taken together, with zeros in the filter between them.
//
// A thread's block is some rows of the line (line.h), whose strip it splits into bfloat16 parts once; then every panel
// of the filter goes by, and each 32 positions and 32 channels of sums are finished in L1. Nothing is gathered: what a
// tap sees is the strip from another position on.
//
// While the tile unit multiplies, the vector units pack the strip of the next block and finish the piece before, a few
// hundred instructions after each step of products: as many as the processor looks ahead.
#include "line.h"
#include "parallel.h"
#include "tile_registers.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

constexpr int64_t kPiece = 2 * kTileSide;  // positions, and columns of a panel
// Of L2, for a block's strip; a deep one takes more, so that the filter goes by less often.
constexpr int64_t kStripBytes = 256 * 1024;
constexpr int64_t kLeastPositions = 64;
// Numbers of a slice of packing.
constexpr int64_t kSliceNumbers = 256;
// How many slices before it is packed a slice is asked for: more would fill the buffers that the products' loads need.
constexpr size_t kSlicesAhead = 2;

// Registers of columns in the panel that begins with `first`.
int64_t panel_tiles(const Filter<float>& filter, int64_t first) {
  return filter.outputs - first > kTileSide ? 2 : 1;
}

// The chunks of inputs that the panel's outputs are sums of.
Range panel_chunks(const Filter<float>& f, int64_t panel) {
  const int64_t first = panel * kPiece, last = std::min(first + kPiece, f.outputs) - 1;
  const int64_t begin = first / f.outputs_per_group * f.inputs_per_group;
  const int64_t end = (last / f.outputs_per_group + 1) * f.inputs_per_group;
  return {begin / kTileTerms, (end + kTileTerms - 1) / kTileTerms};
}

// Where each panel of a filter of one tap begins, in elements, and where the last one ends.
template <int kParts>
std::vector<int64_t> panel_begins(const Filter<float>& filter) {
  std::vector<int64_t> begins{0};
  for (int64_t first = 0; first < filter.outputs; first += kPiece) {
    const Range chunks = panel_chunks(filter, first / kPiece);
    begins.push_back(begins.back() + (chunks.end - chunks.begin) * panel_tiles(filter, first) * kTileNumbers * kParts);
  }
  return begins;
}

// Reads a chunk of inputs for 16 outputs from a tap, zeros where an output is no sum of an input.
void read_step(const Filter<float>& f, const float* tap, int64_t input, int64_t output,
               float (&numbers)[kTileTerms][kTileSide]) {
  const int64_t inputs = std::min(kTileTerms, f.inputs - input);
  const int64_t outputs = std::min<int64_t>(kTileSide, f.outputs - output);
  const float* from = tap + input * f.input_stride + output * f.output_stride;
  if (f.outputs_per_group < f.outputs) {
    for (int64_t o = 0; o < outputs; ++o) {
      const int64_t group = (output + o) / f.outputs_per_group * f.inputs_per_group - input;  // its first input
      for (int64_t i = std::max<int64_t>(group, 0); i < std::min(inputs, group + f.inputs_per_group); ++i)
        numbers[i][o] = tap[f.output_offset(output + o) + f.input_offset(input + i)];
    }
  } else if (f.output_stride == 1) {  // dgrad's
    for (int64_t i = 0; i < inputs; ++i) std::copy_n(from + i * f.input_stride, outputs, numbers[i]);
  } else if (f.input_stride == 1) {
    transpose(from, f.output_stride, outputs, inputs, numbers[0], kTileSide);
  } else {
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t i = 0; i < inputs; ++i) numbers[i][o] = from[o * f.output_stride + i * f.input_stride];
  }
}

// Writes a step of a panel: for each part, registers of pairs of inputs [16, 16 outputs, 2].
template <int kParts>
BFloat16* pack_step(const Filter<float>& f, const Tap& tap, int64_t input, int64_t output, BFloat16* to) {
  const int64_t tiles = panel_tiles(f, output);
  for (int64_t t = 0; t < tiles; ++t, output += kTileSide) {
    alignas(64) float numbers[kTileTerms][kTileSide] = {};  // [inputs, outputs]
    read_step(f, f.data + tap.r * f.r_stride + tap.s * f.s_stride, input, output, numbers);
    for (int64_t i = 0; i < kTileSide; ++i)
      split_pairs<kParts>(numbers[i], numbers[kTileSide + i], to + t * kTileNumbers + i * kTileTerms,
                          tiles * kTileNumbers);
  }
  return to + kParts * tiles * kTileNumbers;
}

template <int kParts>
class LineConv {
 public:
  LineConv(const GatherPlan& plan, const Filter<float>& filter, const float* packed, const Source<float>& source,
           PieceSink<float>& sink, int threads)
      : plan_(plan),
        filter_(filter),
        packed_(reinterpret_cast<const BFloat16*>(packed)),
        source_(source),
        sink_(sink),
        line_(plan),
        chunks_((filter.inputs + kTileTerms - 1) / kTileTerms),
        panel_begins_(panel_begins<kParts>(filter)),
        panels_(static_cast<int64_t>(panel_begins_.size()) - 1),
        slice_pixels_(std::clamp<int64_t>(kSliceNumbers / (chunks_ * kTileTerms), 1, 4)) {
    const int64_t position_bytes = kParts * line_.planes() * chunks_ * kTileBytes;
    const int64_t fitting = std::max(kStripBytes / position_bytes, kLeastPositions) / line_.pitch();
    // Few positions: each thread computes a share of the channels, so that it reads a share of the filter.
    by_channels_ = threads > 1 && panels_ >= threads && line_.rows() * line_.pitch() < threads * 4 * kPiece;
    rows_ = std::clamp<int64_t>(fitting, 1, by_channels_ ? line_.rows() : (line_.rows() + threads - 1) / threads);
    // Past the last row: what a tap sees from a last piece on.
    positions_ = round_up(line_.strip_positions(rows_) + line_.pitch() + kPiece, kTileSide);
    chunk_ = positions_ * kTileTerms;
    plane_ = chunks_ * chunk_;
    part_ = line_.planes() * plane_;
    strip_size_ = kParts * part_ / 2;  // in floats
    strips_ = workspace<float>(Slot::strips, 2 * strip_size_ * threads);
    for (const Phase& phase : plan.phases) {
      std::vector<int64_t>& steps = steps_.emplace_back();
      for (int64_t c = 0; c < chunks_; ++c)  // a chunk's strip stays in L1 for all taps
        for (const Tap& tap : phase.taps)
          steps.push_back(line_.plane(tap) * plane_ + c * chunk_ + line_.shift(tap) * kTileTerms);
    }
  }

  void run(int part, int parts) {
    Worker worker(*this, part);
    const Range rows = by_channels_ ? Range{0, line_.rows()} : share(line_.rows(), part, parts);
    const Range panels = by_channels_ ? share(panels_, part, parts) : Range{0, panels_};
    const auto block = [&](int64_t row) { return Range{row, std::min(row + rows_, rows.end)}; };
    worker.pack(block(rows.begin));
    for (int64_t row = rows.begin; row < rows.end; row += rows_) worker.run(block(row), block(row + rows_), panels);
  }

 private:
  // Some pixels of a strip, or zeros where `pixel` is -1.
  struct Slice {
    BFloat16* to;
    int64_t pixel, count;
  };

  struct Worker {
    Worker(const LineConv& conv, int thread)
        : c(conv), thread(thread), numbers(conv.chunks_ * conv.slice_pixels_ * kTileTerms) {
      auto* begin = reinterpret_cast<BFloat16*>(conv.strips_ + 2 * thread * conv.strip_size_);
      strip = begin;
      next_strip = begin + 2 * conv.strip_size_;
    }

    // The strip of the first block.
    void pack(const Range& rows) {
      plan_packing(rows, 1);
      pack_slices(slices.size());
    }

    // The outputs of these rows, whose strip is packed; meanwhile packs that of `next`.
    void run(const Range& rows, const Range& next, const Range& panels) {
      std::swap(strip, next_strip);
      int64_t taps = 0, chunks = 0;
      for (const Phase& phase : c.plan_.phases) taps += static_cast<int64_t>(phase.taps.size());
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const Range of_panel = panel_chunks(c.filter_, panel);
        chunks += of_panel.end - of_panel.begin;
      }
      plan_packing(next, taps * chunks * (((rows.end - rows.begin) * c.line_.pitch() + kPiece - 1) / kPiece));
      const BFloat16* packed = c.packed_;
      for (size_t phase = 0; phase < c.steps_.size(); ++phase) {
        locate_outputs(c.plan_.phases[phase], rows);
        const auto taps_of_phase = static_cast<int64_t>(c.plan_.phases[phase].taps.size());
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
          const Range chunks_of_panel = panel_chunks(c.filter_, panel);
          multiply(c.steps_[phase].data() + chunks_of_panel.begin * taps_of_phase,
                   (chunks_of_panel.end - chunks_of_panel.begin) * taps_of_phase, panel,
                   packed + c.panel_begins_[panel] * taps_of_phase);
        }
        finish_rest();
        packed += c.panel_begins_.back() * taps_of_phase;
      }
      pack_slices(slices.size());
      c.sink_.end_block(thread);
    }

    // Cuts a block's strip into slices, to be packed within so many steps.
    void plan_packing(const Range& rows, int64_t steps) {
      slices.clear();
      packed_slices = 0;
      due_slices = 0;
      if (rows.begin >= rows.end) return;
      c.line_.each_stretch(rows.begin, rows.end, [&](int64_t plane, int64_t position, int64_t pixel, int64_t count) {
        BFloat16* to = next_strip + plane * c.plane_ + position * kTileTerms;
        if (pixel < 0) return slices.push_back({to, pixel, count});
        for (int64_t n; count > 0; count -= n, pixel += n * c.plan_.in_step_w, to += n * kTileTerms) {
          n = std::min(count, c.slice_pixels_);
          slices.push_back({to, pixel, n});
        }
      });
      slices_per_step = static_cast<double>(slices.size()) / static_cast<double>(steps);
    }

    // Packs the first `count` slices, as far as they have not been.
    void pack_slices(size_t count) {
      for (count = std::min(count, slices.size()); packed_slices < count; ++packed_slices) {
        const Slice& slice = slices[packed_slices];
        if (packed_slices + kSlicesAhead < slices.size()) {
          const Slice& soon = slices[packed_slices + kSlicesAhead];
          if (soon.pixel >= 0) c.source_.prefetch(soon.pixel, c.plan_.in_step_w, soon.count);
        }
        slice.pixel < 0 ? zero(slice) : read(slice);
      }
    }

    void zero(const Slice& slice) const {
      for (int part = 0; part < kParts; ++part)
        for (int64_t chunk = 0; chunk < c.chunks_; ++chunk)
          std::memset(slice.to + part * c.part_ + chunk * c.chunk_, 0, slice.count * kTileBytes);
    }

    // Splits pixels; a chunk's missing channels stay zero in `numbers`. A row of a register has channels i and 16 + i
    // side by side, as the filter has them.
    void read(const Slice& slice) const {
      const int64_t chunk_numbers = c.slice_pixels_ * kTileTerms;
      c.source_.read(slice.pixel, c.plan_.in_step_w, slice.count,
                     {numbers.get(), kTileTerms, kTileTerms, chunk_numbers});
      for (int64_t chunk = 0; chunk < c.chunks_; ++chunk)
        for (int64_t i = 0; i < slice.count; ++i) {
          const float* from = numbers.get() + chunk * chunk_numbers + i * kTileTerms;
          split_pairs<kParts>(from, from + kTileSide, slice.to + chunk * c.chunk_ + i * kTileTerms, c.part_);
        }
    }

    // The outputs of each half of a piece, a register's rows, in runs.
    void locate_outputs(const Phase& phase, const Range& rows) {
      runs.clear();
      first_run.assign(1, 0);
      const auto halves_up_to = [&](int64_t half) {
        while (static_cast<int64_t>(first_run.size()) <= half) first_run.push_back(runs.size());
      };
      c.line_.each_output(phase, rows.begin, rows.end, [&](int64_t position, int64_t pixel, int64_t count) {
        for (int64_t n; count > 0; count -= n, position += n, pixel += n * c.plan_.out_step_w) {
          n = std::min<int64_t>(count, kTileSide - position % kTileSide);
          halves_up_to(position / kTileSide);
          runs.push_back({position % kPiece, pixel, n});
        }
      });
      halves_up_to(static_cast<int64_t>(first_run.size() + 1) / 2 * 2);
    }

    void multiply(const int64_t* steps, int64_t count, int64_t panel, const BFloat16* packed) {
      const int64_t channel = panel * kPiece, tiles = panel_tiles(c.filter_, channel);
      const Operand b{packed, kTileBytes, kTileNumbers, tiles * kTileNumbers};
      for (size_t half = 0; half + 2 < first_run.size(); half += 2) {
        if (first_run[half] == first_run[half + 2]) continue;
        const Operand a{strip + static_cast<int64_t>(half) * kTileNumbers, kTileBytes, kTileNumbers, c.part_};
        const bool is_high = first_run[half + 1] < first_run[half + 2];
        multiply_piece(a, steps, count, b, is_high, tiles > 1, sums[to_second]);
        finish_rest();
        unfinished = {sums[to_second], channel, half, half + 2};
        to_second = !to_second;
      }
    }

    void multiply_piece(const Operand& a, const int64_t* steps, int64_t count, const Operand& b, bool is_high,
                        bool is_wide, float* to) {
      const int64_t b_step = kParts * b.part;
      const auto meanwhile = [this, second = count / 2](int64_t k) {
        if (k == 0 || k == second) finish_half();
        due_slices += slices_per_step;
        pack_slices(static_cast<size_t>(due_slices));
      };
      if (is_high && is_wide)
        multiply_steps<kParts, 2, 2>(tiles, a, steps, count, b, b_step, to, kPiece, false, meanwhile);
      else if (is_high)
        multiply_steps<kParts, 2, 1>(tiles, a, steps, count, b, b_step, to, kPiece, false, meanwhile);
      else if (is_wide)
        multiply_steps<kParts, 1, 2>(tiles, a, steps, count, b, b_step, to, kPiece, false, meanwhile);
      else
        multiply_steps<kParts, 1, 1>(tiles, a, steps, count, b, b_step, to, kPiece, false, meanwhile);
    }

    // Half of the piece before, if any of it is left.
    void finish_half() {
      if (unfinished.half == unfinished.end) return;
      const size_t first = first_run[unfinished.half], count = first_run[unfinished.half + 1] - first;
      c.sink_.finish(
          thread, Piece<float>{unfinished.sums, kPiece, &runs[first], static_cast<int64_t>(count), c.plan_.out_step_w,
                               unfinished.channel, std::min(kPiece, c.filter_.outputs - unfinished.channel)});
      ++unfinished.half;
    }
    void finish_rest() {
      while (unfinished.half < unfinished.end) finish_half();
    }

    const LineConv& c;
    int thread;
    BFloat16 *strip, *next_strip;
    Scratch<float> numbers;
    std::vector<Slice> slices;  // of the next strip
    size_t packed_slices = 0;
    double due_slices = 0, slices_per_step = 0;
    Tiles tiles;
    alignas(64) float sums[2][kPiece * kPiece];  // of the piece that is multiplied, and of the one before
    bool to_second = false;
    struct {
      const float* sums;
      int64_t channel;
      size_t half, end;
    } unfinished{};  // halves of the piece before
    std::vector<PieceRun> runs;
    std::vector<size_t> first_run;  // of each half of a piece, and one more
  };

  const GatherPlan& plan_;
  const Filter<float>& filter_;
  const BFloat16* packed_;
  const Source<float>& source_;
  PieceSink<float>& sink_;
  Line line_;
  int64_t chunks_;
  std::vector<int64_t> panel_begins_;  // of a tap's packed filter
  int64_t panels_;
  int64_t slice_pixels_;
  bool by_channels_;
  int64_t rows_;                             // of the line, in a block
  int64_t positions_;                        // of a plane's strip
  int64_t chunk_, plane_, part_;             // elements
  int64_t strip_size_;                       // in floats; a thread has two
  std::vector<std::vector<int64_t>> steps_;  // of each phase: where a tap's chunk begins
  float* strips_;
};

}  // namespace

template <int kParts>
int64_t packed_line_size(const GatherPlan& plan, const Filter<float>& filter) {
  int64_t taps = 0;
  for (const Phase& phase : plan.phases) taps += static_cast<int64_t>(phase.taps.size());
  return taps * panel_begins<kParts>(filter).back() / 2;
}

template <int kParts>
void pack_line(const GatherPlan& plan, const Filter<float>& filter, int threads, float* packed) {
  const std::vector<int64_t> begins = panel_begins<kParts>(filter);
  auto* begin = reinterpret_cast<BFloat16*>(packed);
  for (const Phase& phase : plan.phases) {
    const auto taps = static_cast<int64_t>(phase.taps.size());
    for_each(static_cast<int64_t>(begins.size()) - 1, threads, [&](int, int64_t panel) {
      BFloat16* to = begin + begins[panel] * taps;
      const Range chunks = panel_chunks(filter, panel);
      for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk)
        for (const Tap& tap : phase.taps) to = pack_step<kParts>(filter, tap, chunk * kTileTerms, panel * kPiece, to);
    });
    begin += begins.back() * taps;
  }
}

template <int kParts>
void line_conv(const GatherPlan& plan, const Filter<float>& filter, const float* packed, const Source<float>& source,
               PieceSink<float>& sink, int threads) {
  LineConv<kParts> conv(plan, filter, packed, source, sink, threads);
  parallel(threads, [&](int part, int parts) { conv.run(part, parts); });
}

#define FUSED_RESNET_INSTANTIATE(kParts)                                                                       \
  template int64_t packed_line_size<kParts>(const GatherPlan&, const Filter<float>&);                          \
  template void pack_line<kParts>(const GatherPlan&, const Filter<float>&, int, float*);                       \
  template void line_conv<kParts>(const GatherPlan&, const Filter<float>&, const float*, const Source<float>&, \
                                  PieceSink<float>&, int);
FUSED_RESNET_INSTANTIATE(1)
FUSED_RESNET_INSTANTIATE(2)
FUSED_RESNET_INSTANTIATE(3)

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
