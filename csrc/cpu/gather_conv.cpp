// Direct convolution as implicit GEMM: the rows of a matrix are what each output reads, and its right side is the
// filter, packed in panels. The rows are gathered into tiles, a block of outputs at a time; where there are few panels
// to multiply them by, as in grouped convolutions and in the stem, that would cost more than it helps, and they are
// read in place.
#include "gather.h"
#include "parallel.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// Of L2, for a block's tiles.
constexpr int64_t kTileBytes = 192 * 1024;
// Of L1, for a panel: terms of a sum.
constexpr int64_t kPieceDepth = 256;
// Of L2, for a block's strip where it is read in place, and how many panels read it at most.
constexpr int64_t kStripBytes = 256 * 1024;
constexpr int64_t kPanelsInPlace = 2;

// Panels of a super-group's filter in one phase, one after the other: [outputs / kPanel][depth, columns of the panel],
// the columns a whole number of registers.
template <class S>
int64_t padded_outputs(const SuperGroups& groups) {
  return round_up(groups.outputs, kLanes<S>);
}

int64_t depth_of(const Phase& phase, const SuperGroups& groups) {
  return static_cast<int64_t>(phase.taps.size()) * groups.inputs;
}

// Writes one panel [depth, columns]; `outputs` of the columns are outputs from `first` on, the others are zero.
template <class S>
void pack_panel(const Filter<S>& f, const Phase& phase, int64_t first_input, int64_t inputs, int64_t first,
                int64_t outputs, int64_t columns, S* panel) {
  constexpr int64_t kBlock = 16;  // inputs at a time: a cache line of a contiguous filter
  for (const Tap& tap : phase.taps) {
    const S* from = f.data + tap.r * f.r_stride + tap.s * f.s_stride;
    for (int64_t i = 0; i < inputs; i += kBlock, panel += kBlock * columns) {
      const int64_t n = std::min(kBlock, inputs - i);
      const bool is_dense = f.outputs == f.outputs_per_group;
      const S* block = from + (first_input + i) * f.input_stride + first * f.output_stride;
      if (is_dense && f.output_stride == 1) {  // dgrad's: the outputs lie side by side
        for (int64_t k = 0; k < n; ++k) std::copy_n(block + k * f.input_stride, outputs, panel + k * columns);
      } else if (is_dense && f.input_stride == 1) {
        transpose(block, f.output_stride, outputs, n, panel, columns);
      } else if (is_dense) {
        for (int64_t o = 0; o < outputs; ++o)
          for (int64_t k = 0; k < n; ++k) panel[k * columns + o] = block[o * f.output_stride + k * f.input_stride];
      } else {
        for (int64_t o = 0; o < outputs; ++o)
          for (int64_t k = 0; k < n; ++k) {
            const int64_t output = first + o, input = first_input + i + k;
            panel[k * columns + o] =
                f.connects(output, input) ? from[f.output_offset(output) + f.input_offset(input)] : S(0);
          }
      }
      for (int64_t k = 0; k < n; ++k) std::fill(panel + k * columns + outputs, panel + (k + 1) * columns, S(0));
      if (n < kBlock) panel -= (kBlock - n) * columns;
    }
  }
}

int64_t panel_columns(int64_t outputs_left, int64_t panel, int64_t lanes) {
  return outputs_left <= lanes ? lanes : panel;
}

// The blocks of a convolution and what they need, which all threads read.
template <class S>
struct Blocks {
  Blocks(const GatherPlan& plan, const Filter<S>& filter, int threads)
      : plan(plan),
        groups(SuperGroups::of(filter)),
        strip(plan, groups),
        panels((groups.outputs + kPanel<S> - 1) / kPanel<S>),
        pointwise(is_pointwise(plan, groups)),
        in_place(!pointwise && (groups.count > 1 || panels <= kPanelsInPlace)) {
    int64_t depth = 0;  // of the widest phase
    for (const Phase& phase : plan.phases) depth = std::max(depth, depth_of(phase, groups));
    const int64_t total = plan.batch * plan.out_height;
    if (in_place) {
      const int64_t row_bytes = strip.size(1, 0) * groups.count * static_cast<int64_t>(sizeof(S));
      rows = std::clamp<int64_t>(kStripBytes / row_bytes, 1, (total + threads - 1) / threads);
    } else {
      const int64_t fitting = kTileBytes / static_cast<int64_t>(sizeof(S)) / depth;
      const int64_t pixels = std::clamp<int64_t>(fitting, 4 * kTileRows, 16 * kTileRows);
      together =
          plan.phases.size() == 1 && panels >= threads && threads > 1 && total * plan.out_width <= threads * pixels;
      rows = together ? total : std::clamp<int64_t>(pixels / plan.out_width, 1, (total + threads - 1) / threads);
    }
    const int64_t tiles = (rows * plan.out_width + kTileRows - 1) / kTileRows;
    tiles_size = in_place ? 0 : tiles * tile_size(depth);
    for (const Phase& phase : plan.phases) steps += depth_of(phase, groups);
    steps *= groups.count * panels * tiles / static_cast<int64_t>(plan.phases.size());
    group_size = pointwise ? 0 : strip.size(rows, rows / plan.out_height + 2);
  }

  const GatherPlan& plan;
  SuperGroups groups;
  Strip<S> strip;
  int64_t panels;  // of a super-group's outputs
  bool pointwise, in_place;
  // A small image's pixels: each thread computes a share of the channels, so that it reads a share of the filter.
  bool together = false;
  int64_t rows;        // of images, in a block of outputs
  int64_t steps = 0;   // of all products of a block
  int64_t tiles_size;  // of a block
  int64_t group_size;  // of a block's strips for one super-group
};

// One thread's work.
template <class S>
class Worker {
 public:
  Worker(const Blocks<S>& blocks, const S* packed, const Source<S>& source, Sink<S>& sink, int thread, S* strips,
         S* tiles)
      : b_(blocks),
        plan_(blocks.plan),
        packed_(packed),
        source_(source),
        sink_(sink),
        thread_(thread),
        strips_(strips),
        tiles_(tiles) {}

  // The outputs of these rows; those until `next` are the next to come.
  void run(int64_t begin, int64_t end, int64_t next) {
    segments_ = segments_of(begin, end, plan_.out_height);
    first_pixel_ = begin * plan_.out_width;
    out_ = sink_.rows(thread_, first_pixel_);
    ahead_.clear();
    sink_.announce(first_pixel_, (end - begin) * plan_.out_width, ahead_);
    for (const Segment& segment : segments_of(end, next, plan_.out_height)) b_.strip.announce(segment, source_, ahead_);
    ahead_.spread(b_.steps * (end - begin) / b_.rows);
    fill_strips();
    const S* packed = packed_;
    for (const Phase& phase : plan_.phases) {
      locate_outputs(phase);
      for (int64_t group = 0; group < b_.groups.count; ++group) {
        if (phase.taps.empty()) {
          for (S* out : outputs_) std::fill_n(out + group * b_.groups.outputs, b_.groups.outputs, S(0));
        } else if (b_.in_place) {
          multiply_in_place(phase, group, packed);
        } else if (!outputs_.empty()) {
          b_.pointwise ? read_tiles(phase, 0) : gather_tiles(phase, 0);
          multiply(phase, packed, {0, b_.panels});
        }
        packed += depth_of(phase, b_.groups) * padded_outputs<S>(b_.groups);
      }
    }
    sink_.finish(thread_, out_, first_pixel_, (end - begin) * plan_.out_width);
  }

  // The outputs of these rows, of which all threads gather a share of the pixels and compute a share of the channels.
  void run_together(int64_t begin, int64_t end, int part, int parts) {
    const Phase& phase = plan_.phases.front();
    const Range mine = share(end - begin, part, parts);
    const int64_t first = mine.begin * plan_.out_width;
    first_pixel_ = begin * plan_.out_width;
    out_ = sink_.rows(0, first_pixel_);
    segments_ = segments_of(begin + mine.begin, begin + mine.end, plan_.out_height);
    fill_strips();
    b_.pointwise ? read_tiles(phase, first) : gather_tiles(phase, first);
    segments_ = segments_of(begin, end, plan_.out_height);
    locate_outputs(phase);
    barrier(parts);
    multiply(phase, packed_, share(b_.panels, part, parts));
    barrier(parts);
    sink_.finish(thread_, out_ + first * sink_.row_stride(), first_pixel_ + first,
                 (mine.end - mine.begin) * plan_.out_width);
  }

 private:
  // Calls f(segment number, i, range of j) for each row of a phase's outputs.
  template <class F>
  void for_rows(const Phase& phase, const F& f) const {
    const Range columns = indices_in(0, plan_.out_width, phase.first_w, plan_.out_step_w);
    for (size_t n = 0; n < segments_.size(); ++n) {
      const Range rows = indices_in(segments_[n].begin, segments_[n].end, phase.first_h, plan_.out_step_h);
      for (int64_t i = rows.begin; i < rows.end; ++i) f(n, i, columns);
    }
  }

  void fill_strips() {
    if (b_.pointwise) return;
    S* strip = strips_;
    strip_of_.clear();
    for (const Segment& segment : segments_) {
      strip_of_.push_back(strip);
      b_.strip.fill(segment, source_, strip, b_.group_size);
      strip += b_.strip.size(segment);
    }
  }

  // Where the phase's outputs are written and, in place, what they read, in halves of tiles that lie in one row.
  void locate_outputs(const Phase& phase) {
    outputs_.clear();
    halves_.clear();
    for_rows(phase, [&](size_t n, int64_t i, const Range& columns) {
      const int64_t h = segments_[n].image * plan_.out_height + phase.first_h + i * plan_.out_step_h;
      const int64_t pixel = h * plan_.out_width + phase.first_w - first_pixel_;
      for (int64_t j = columns.begin; j < columns.end; ++j) {
        if (b_.in_place && (j - columns.begin) % kHalfTile == 0)
          halves_.push_back({b_.strip.at(segments_[n], strip_of_[n], i, j), static_cast<int64_t>(outputs_.size()),
                             std::min<int64_t>(kHalfTile, columns.end - j)});
        outputs_.push_back(out_ + (pixel + j * plan_.out_step_w) * sink_.row_stride());
      }
    });
  }

  Rows<S> tile_row(int64_t m, int64_t depth) const {
    return Rows<S>::tile(tiles_ + m / kTileRows * tile_size(depth)).from_row(m % kTileRows);
  }

  // The inputs of the segments' outputs, to rows of the tiles from m on.
  void read_tiles(const Phase& phase, int64_t m) const {
    const Tap& tap = phase.taps.front();
    for_rows(phase, [&](size_t n, int64_t i, const Range& columns) {
      const int64_t y = segments_[n].image * plan_.in_height + i * plan_.in_step_h + tap.dy;
      for (int64_t j = columns.begin, count; j < columns.end; j += count, m += count) {
        count = std::min(columns.end - j, kTileRows - m % kTileRows);
        source_.read(y * plan_.in_width + j * plan_.in_step_w + tap.dx, plan_.in_step_w, count,
                     tile_row(m, b_.groups.inputs));
      }
    });
  }

  void gather_tiles(const Phase& phase, int64_t m) const {
    const std::vector<Run> runs = runs_of(phase.taps, b_.groups.inputs);
    const int64_t depth = depth_of(phase, b_.groups);
    for_rows(phase, [&](size_t n, int64_t i, const Range& columns) {
      for (int64_t j = columns.begin; j < columns.end; ++j, ++m) {
        const Rows<S> row = tile_row(m, depth);
        const S* from = b_.strip.at(segments_[n], strip_of_[n], i, j);
        int64_t column = 0;
        for (const Run& run : runs) {
          copy_columns(row, column, from + b_.strip.offset(run.dy, run.dx), run.length);
          column += run.length;
        }
      }
    });
  }

  // Long sums are cut into pieces, so that a panel's piece stays in L1 while the tiles go by.
  void multiply(const Phase& phase, const S* packed, const Range& panels) {
    const int64_t depth = depth_of(phase, b_.groups), pieces = (depth + kPieceDepth - 1) / kPieceDepth;
    const int64_t piece = round_up((depth + pieces - 1) / pieces, kChunk);
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      const int64_t first = p * kPanel<S>, columns = std::min(kPanel<S>, b_.groups.outputs - first);
      const S* panel = packed + first * depth;
      for (int64_t done = 0; done < depth; done += piece) {
        const int64_t n = std::min(piece, depth - done);
        multiply_piece(first, columns, depth, done, n, panel);
        panel += n * panel_columns(columns, kPanel<S>, kLanes<S>);
      }
    }
  }

  // Adds up terms [done, done + n) of the sums of all tiles, for one panel.
  void multiply_piece(int64_t output, int64_t columns, int64_t depth, int64_t done, int64_t n, const S* panel) {
    const int64_t total = static_cast<int64_t>(outputs_.size());
    if (b_.together)  // few tiles: the filter comes from memory
      ahead_.add_first(panel + n * kPanel<S>, n * kPanel<S> * static_cast<int64_t>(sizeof(S)),
                       (total + kTileRows - 1) / kTileRows * n);
    const S* tile = tiles_ + done * kTileRows;
    for (int64_t m = 0; m < total; m += kTileRows, tile += tile_size(depth)) {
      const int rows = static_cast<int>(std::min<int64_t>(kTileRows, total - m));
      S* out[kTileRows] = {};
      for (int i = 0; i < rows; ++i) out[i] = outputs_[m + i] + output;
      multiply_tile(tile, panel, n, out, rows, columns, done > 0, ahead_.take(n));
    }
  }

  // The products of one super-group with what its outputs read in the strips.
  void multiply_in_place(const Phase& phase, int64_t group, const S* packed) {
    std::vector<Stretch> stretches;
    for (const Run& run : runs_of(phase.taps, b_.groups.inputs))
      stretches.push_back({b_.strip.offset(run.dy, run.dx), run.length});
    const int64_t depth = depth_of(phase, b_.groups), step = plan_.in_step_w * b_.groups.inputs;
    for (int64_t first = 0; first < b_.groups.outputs; first += kPanel<S>) {
      const int64_t columns = std::min(kPanel<S>, b_.groups.outputs - first);
      const S* panel = packed + first * depth;
      for (size_t n = 0; n < halves_.size(); n += 2) {
        S spare[kPanel<S>], *out[kTileRows];
        std::fill_n(out, kTileRows, static_cast<S*>(spare));
        const size_t both = std::min<size_t>(2, halves_.size() - n);
        for (size_t half = 0; half < both; ++half)
          for (int64_t i = 0; i < halves_[n + half].count; ++i)
            out[half * kHalfTile + i] = outputs_[halves_[n + half].output + i] + group * b_.groups.outputs + first;
        const S* read[] = {halves_[n].read + group * b_.group_size, halves_[n + both - 1].read + group * b_.group_size};
        multiply_strips(read, both, step, stretches, panel, out, columns, ahead_.take(depth));
      }
    }
  }

  // Outputs beside each other in one row, from outputs_[output] on.
  struct Half {
    const S* read;  // what the first reads at (0, 0)
    int64_t output, count;
  };

  const Blocks<S>& b_;
  const GatherPlan& plan_;
  const S* packed_;
  const Source<S>& source_;
  Sink<S>& sink_;
  int thread_;
  S *strips_, *tiles_;
  std::vector<Segment> segments_;
  std::vector<const S*> strip_of_;
  std::vector<S*> outputs_;  // of a phase in this block
  std::vector<Half> halves_;
  Ahead ahead_;
  int64_t first_pixel_ = 0;
  S* out_ = nullptr;
};

}  // namespace

template <class S>
int64_t packed_gather_size(const GatherPlan& plan, const Filter<S>& filter) {
  const SuperGroups groups = SuperGroups::of(filter);
  int64_t depth = 0;
  for (const Phase& phase : plan.phases) depth += depth_of(phase, groups);
  return depth * groups.count * padded_outputs<S>(groups);
}

template <class S>
void pack_gather(const GatherPlan& plan, const Filter<S>& filter, int threads, S* packed) {
  const SuperGroups groups = SuperGroups::of(filter);
  const int64_t panels = (groups.outputs + kPanel<S> - 1) / kPanel<S>;
  for (const Phase& phase : plan.phases) {
    const int64_t depth = depth_of(phase, groups), size = depth * padded_outputs<S>(groups);
    for_each(groups.count * panels, threads_for(groups.count * size, threads), [&](int, int64_t item) {
      const int64_t group = item / panels, first = item % panels * kPanel<S>;
      const int64_t outputs = std::min(kPanel<S>, groups.outputs - first);
      pack_panel(filter, phase, group * groups.inputs, groups.inputs, group * groups.outputs + first, outputs,
                 panel_columns(outputs, kPanel<S>, kLanes<S>), packed + group * size + first * depth);
    });
    packed += groups.count * size;
  }
}

template <class S>
void gather_conv(const GatherPlan& plan, const Filter<S>& filter, const S* packed, const Source<S>& source,
                 Sink<S>& sink, int threads) {
  const Blocks<S> blocks(plan, filter, threads);
  const int64_t strips_size = blocks.groups.count * blocks.group_size;
  S* strips = workspace<S>(Slot::strips, strips_size * threads);
  S* tiles = workspace<S>(Slot::tiles, blocks.tiles_size * (blocks.together ? 1 : threads));
  sink.start(threads, blocks.rows * plan.out_width);
  parallel(threads, [&](int part, int parts) {
    S* own_tiles = tiles + (blocks.together ? 0 : part * blocks.tiles_size);
    Worker<S> worker(blocks, packed, source, sink, part, strips + part * strips_size, own_tiles);
    if (blocks.together) return worker.run_together(0, plan.batch * plan.out_height, part, parts);
    const Range rows = share(plan.batch * plan.out_height, part, parts);
    for (int64_t row = rows.begin; row < rows.end; row += blocks.rows)
      worker.run(row, std::min(row + blocks.rows, rows.end), std::min(row + 2 * blocks.rows, rows.end));
  });
}

#define FUSED_RESNET_INSTANTIATE(S)                                            \
  template int64_t packed_gather_size<S>(const GatherPlan&, const Filter<S>&); \
  template void pack_gather<S>(const GatherPlan&, const Filter<S>&, int, S*);  \
  template void gather_conv<S>(const GatherPlan&, const Filter<S>&, const S*, const Source<S>&, Sink<S>&, int);
FUSED_RESNET_INSTANTIATE(float)
FUSED_RESNET_INSTANTIATE(double)

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
