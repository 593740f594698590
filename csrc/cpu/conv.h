// The convolution engine's inner interfaces. It computes in S, float or double, and knows neither the type of tensors
// nor batch norms: what it convolves comes from a Source, pixel by pixel, and what it has computed goes to a Sink.
#pragma once

#include <vector>

#include "../shapes.h"
#include "gemm.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// Rows of numbers in memory, their columns in chunks: column c of row i is at
// data[i * row_stride + c / chunk * chunk_stride + c % chunk].
template <class S>
struct Rows {
  S* data;
  int64_t row_stride, chunk, chunk_stride;

  // [rows, columns] with nothing special.
  static Rows plain(S* data, int64_t columns) { return {data, columns, columns, columns}; }
  // Tiles of multiply_rows hold kTileRows of them each.
  static Rows tile(S* data) { return {data, kChunk, kChunk, kTileRows * kChunk}; }
  // Panels [columns / kPanel, rows, kPanel], the right side of multiply_columns.
  static Rows panels(S* data, int64_t rows) { return {data, kPanel<S>, kPanel<S>, rows * kPanel<S>}; }

  Rows from_row(int64_t i) const { return {data + i * row_stride, row_stride, chunk, chunk_stride}; }
};

// The input of a convolution: pixels [pixels, channels] with everything done to them that comes before it.
template <class S>
class Source {
 public:
  virtual ~Source() = default;

  // Writes `count` pixels, each `step` after the one before. May be called from every thread.
  virtual void read(int64_t pixel, int64_t step, int64_t count, const Rows<S>& out) const = 0;
  // Asks for the memory that read() will read.
  virtual void prefetch(int64_t pixel, int64_t step, int64_t count) const = 0;
  // The memory that reading these pixels will read.
  virtual void announce(int64_t pixel, int64_t count, Ahead& ahead) const = 0;
};

// The output of a convolution.
template <class S>
class Sink {
 public:
  virtual ~Sink() = default;

  // Tells how many threads there are, and how many pixels they write at a time.
  virtual void start(int threads, int64_t pixels) = 0;
  // Where this thread's pixels from `pixel` on are to be written, row_stride() elements apart.
  virtual S* rows(int thread, int64_t pixel) = 0;
  virtual int64_t row_stride() const = 0;
  // They have been, by this thread or others: does everything that comes after the convolution for the pixels from
  // `pixel` on, which lie in `rows`, while they are in the cache.
  virtual void finish(int thread, S* rows, int64_t pixel, int64_t count) = 0;
  // The memory that finish() will read beside them.
  virtual void announce(int64_t, int64_t, Ahead&) const {}
};

// Outputs beside each other: `count` rows of a piece from `row` on, which are pixels from `pixel` on.
struct PieceRun {
  int64_t row, pixel, count;
};

// Sums of some outputs and channels, in L1: columns from `channel` on, rows as the runs say. The pixels of a run are
// pixel_step apart.
template <class S>
struct Piece {
  const S* rows;
  int64_t row_stride;
  const PieceRun* runs;
  int64_t run_count, pixel_step, channel, columns;
};

// The output of a convolution a piece at a time, finished while the next one is computed.
template <class S>
class PieceSink {
 public:
  virtual ~PieceSink() = default;

  // Everything that comes after the convolution.
  virtual void finish(int thread, const Piece<S>& piece) = 0;
  // A block of pieces, some hundred pixels, is finished: sums that would grow too long in S can be put away.
  virtual void end_block(int) {}
  // The memory that finishing these pixels will read.
  virtual void announce(int64_t, int64_t, Ahead&) const {}
};

// A filter as a convolution reads it: forward's own, or for dgrad the same with input and output exchanged.
template <class S>
struct Filter {
  const S* data;
  int64_t outputs, inputs;  // channels, of all groups
  int64_t output_stride, input_stride, r_stride, s_stride;
  int64_t outputs_per_group, inputs_per_group;
  bool is_transposed;  // dgrad's

  // [K, C / groups, R, S] numbers only the channels of a group for one of the two.
  int64_t output_offset(int64_t o) const { return (is_transposed ? o % outputs_per_group : o) * output_stride; }
  int64_t input_offset(int64_t i) const { return (is_transposed ? i : i % inputs_per_group) * input_stride; }
  bool connects(int64_t o, int64_t i) const { return o / outputs_per_group == i / inputs_per_group; }

  static Filter forward(const S* data, const ConvShape& shape, const FilterStrides& w) {
    return {data,
            shape.out_channels,
            shape.channels,
            w.k,
            w.c,
            w.r,
            w.s,
            shape.out_channels / shape.groups,
            shape.channels / shape.groups,
            false};
  }
  static Filter dgrad(const S* data, const ConvShape& shape, const FilterStrides& w) {
    return {data,
            shape.channels,
            shape.out_channels,
            w.c,
            w.k,
            w.r,
            w.s,
            shape.channels / shape.groups,
            shape.out_channels / shape.groups,
            true};
  }
};

// One element of a filter and where it reads: input row i * in_step_h + dy for the i-th row of outputs.
struct Tap {
  int64_t dy, dx, r, s;
};

// Outputs (first_h + i out_step_h, first_w + j out_step_w), which all sum over the same taps.
struct Phase {
  int64_t first_h, first_w;
  std::vector<Tap> taps;
};

// A direct convolution in a form that forward and dgrad share. Forward has one phase; in dgrad, stride x stride phases
// of outputs each see the part of the filter that reaches them, and nothing is multiplied by zero.
struct GatherPlan {
  int64_t batch, in_height, in_width, out_height, out_width;
  int64_t in_step_h, in_step_w, out_step_h, out_step_w;
  std::vector<Phase> phases;

  static GatherPlan forward(const ConvShape& shape);
  static GatherPlan dgrad(const ConvShape& shape);
};

// A convolution for Winograd, in a form that forward and dgrad share. dgrad of stride 2 begins with the first gradient,
// its padding being 1.
struct WinogradPlan {
  int64_t batch, in_height, in_width, out_height, out_width, pad_h, pad_w;

  static WinogradPlan forward(const ConvShape& s) {
    return {s.batch, s.height, s.width, s.out_height, s.out_width, s.pad_h, s.pad_w};
  }
  static WinogradPlan dgrad(const ConvShape& s) {
    const bool is_strided = s.stride_h == 2;
    return {s.batch,
            s.out_height,
            s.out_width,
            s.height,
            s.width,
            is_strided ? 0 : 2 - s.pad_h,
            is_strided ? 0 : 2 - s.pad_w};
  }
};

// Implicit GEMM. `packed` holds the filters as pack_gather has written them.
template <class S>
int64_t packed_gather_size(const GatherPlan& plan, const Filter<S>& filter);
template <class S>
void pack_gather(const GatherPlan& plan, const Filter<S>& filter, int threads, S* packed);
template <class S>
void gather_conv(const GatherPlan& plan, const Filter<S>& filter, const S* packed, const Source<S>& source,
                 Sink<S>& sink, int threads);
template <class S>
void gather_wgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads, S* g_weight,
                  const FilterStrides& strides);

// The same for more than one group, of any width.
template <class S>
void strip_wgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads, S* g_weight,
                 const FilterStrides& strides);

// Groups of 1, 2, 4 or 8 channels, as many out as in. `packed` holds the filter as pack_grouped has written it.
template <class S>
int64_t packed_grouped_size(const GatherPlan& plan, const Filter<S>& filter);
template <class S>
void pack_grouped(const GatherPlan& plan, const Filter<S>& filter, S* packed);
template <class S>
void grouped_conv(const GatherPlan& plan, const Filter<S>& filter, const S* packed, const Source<S>& source,
                  Sink<S>& sink, int threads);
template <class S>
void grouped_wgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads, S* g_weight,
                   const FilterStrides& strides);

// Direct convolution in tile registers, with every float as the sum of kParts bfloat16 numbers, 1 to 3. `packed` holds
// the filters as pack_line has written them; its size is in floats.
template <int kParts>
int64_t packed_line_size(const GatherPlan& plan, const Filter<float>& filter);
template <int kParts>
void pack_line(const GatherPlan& plan, const Filter<float>& filter, int threads, float* packed);
template <int kParts>
void line_conv(const GatherPlan& plan, const Filter<float>& filter, const float* packed, const Source<float>& source,
               PieceSink<float>& sink, int threads);
template <int kParts>
void line_wgrad(const ConvShape& shape, const Source<float>& u, const Source<float>& g, int threads, float* g_weight,
                const FilterStrides& strides);

// By one of the Winograd algorithms, for what they are made for.
template <class S>
int64_t packed_winograd_size(ConvAlgorithm algorithm, const Filter<S>& filter);
template <class S>
void pack_winograd(ConvAlgorithm algorithm, const Filter<S>& filter, int threads, S* packed);
template <class S>
void winograd_conv(ConvAlgorithm algorithm, const WinogradPlan& plan, const Filter<S>& filter, const S* packed,
                   const Source<S>& source, Sink<S>& sink, int threads);
template <class S>
void winograd_wgrad(ConvAlgorithm algorithm, const ConvShape& shape, const Source<S>& u, const Source<S>& g,
                    int threads, S* g_weight, const FilterStrides& strides);

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
