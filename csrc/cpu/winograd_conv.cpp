// Winograd convolution: blocks of tiles are transformed, multiplied plane by plane, and transformed back.
//
// Where the transformed filter is small, each thread takes blocks of its own that stay in its L2. Where it is large,
// all threads work on one larger block, so that the filter is read once for all of them.
#include <algorithm>
#include <stdexcept>

#include "parallel.h"
#include "winograd_forms.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

constexpr int64_t kOwnBytes = 640 * 1024;                   // of L2, for a block of one thread's
constexpr int64_t kSharedBytes = 6 * 1024 * 1024;           // of L3, for a block of all threads
constexpr int64_t kSharedStreamedBytes = 12 * 1024 * 1024;  // the same where each block reads its filter from memory
constexpr int64_t kLargeFilterBytes = 4 * 1024 * 1024;
constexpr int64_t kStreamedBytes = 16 * 1024 * 1024;  // a packed filter that no cache keeps until it is read

// Terms of a sum, as tiles add up more of them than there are: what rounds are the products, which outputs cancel.
constexpr int64_t kPieceDepth = 128;

template <class S>
int64_t padded_outputs(const Filter<S>& filter) {
  return round_up(filter.outputs, kLanes<S>);
}

template <class Form, class S>
int64_t packed_size(const Filter<S>& filter) {
  return Form::kProducts * padded_outputs(filter) * filter.inputs;
}

template <class Form, class S>
bool is_streamed(const Filter<S>& filter) {
  return packed_size<Form>(filter) * static_cast<int64_t>(sizeof(S)) > kStreamedBytes;
}

template <class Form, class S>
class WinogradConv {
 public:
  WinogradConv(const WinogradPlan& plan, const Filter<S>& filter, const S* packed, const Source<S>& source,
               Sink<S>& sink, int threads)
      : plan_(plan),
        inputs_(filter.inputs),
        outputs_(filter.outputs),
        padded_outputs_(padded_outputs(filter)),
        packed_(packed),
        source_(source),
        sink_(sink),
        tiles_h_((plan.out_height + kOut - 1) / kOut),
        tiles_w_((plan.out_width + kOut - 1) / kOut),
        strip_(Form::kIn, (tiles_w_ - 1) * kInStep + Form::kIn, filter.inputs, plan.in_height, plan.in_width,
               plan.pad_h, plan.pad_w) {
    const int64_t total = plan.batch * tiles_h_;
    const int64_t row_bytes = tiles_w_ * (kInPlanes * inputs_ + kOutPlanes * outputs_) * sizeof(S);
    is_shared_ = packed_size<Form>(filter) * static_cast<int64_t>(sizeof(S)) > kLargeFilterBytes;
    const int64_t shared_bytes = is_streamed<Form>(filter) ? kSharedStreamedBytes : kSharedBytes;
    rows_ = is_shared_ ? std::clamp<int64_t>(shared_bytes / row_bytes, 1, total)
                       : std::clamp<int64_t>(kOwnBytes / row_bytes, 1, (total + threads - 1) / threads);
    const int64_t tiles = rows_ * tiles_w_;
    // A cache line more, so that the planes of a tile do not share one set of a cache.
    in_stride_ = (tiles + kTileRows - 1) / kTileRows * tile_size(inputs_) + 16;
    out_stride_ = tiles * padded_outputs_ + 16;
    const int copies = is_shared_ ? 1 : threads;
    strips_ = workspace<S>(Slot::strips, strip_.size() * threads);
    in_ = workspace<S>(Slot::tiles, kInPlanes * in_stride_ * copies);
    out_ = workspace<S>(Slot::products, kOutPlanes * out_stride_ * copies);
    sink.start(threads, kOut * plan.out_width);
  }

  void run(int part, int parts) {
    S* strip = strips_ + part * strip_.size();
    strip_.clear(strip);
    const int64_t total = plan_.batch * tiles_h_;
    const Range rows = is_shared_ ? Range{0, total} : share(total, part, parts);
    const int64_t copy = is_shared_ ? 0 : part;
    S *in = in_ + copy * kInPlanes * in_stride_, *out = out_ + copy * kOutPlanes * out_stride_;
    const int thread = part;
    if (!is_shared_) part = 0, parts = 1;
    for (int64_t row = rows.begin; row < rows.end; row += rows_) {
      const int64_t n = std::min(rows_, rows.end - row);
      const Range mine = share(n, part, parts);
      for (int64_t t = mine.begin; t < mine.end; ++t) read(row + t, t * tiles_w_, strip, in);
      Ahead ahead;
      for (int64_t t = mine.begin; t < mine.end; ++t) announce_outputs(row + t, ahead);
      const Range next = share(std::min(rows_, rows.end - row - n), part, parts);
      for (int64_t t = next.begin; t < next.end; ++t)
        strip_.announce((row + n + t) / tiles_h_, (row + n + t) % tiles_h_ * kInStep, kInStep, source_, ahead);
      barrier(parts);
      multiply(share(Form::kProducts * panels(), part, parts), n * tiles_w_, in, out, ahead);
      barrier(parts);
      for (int64_t t = mine.begin; t < mine.end; ++t) write(row + t, t * tiles_w_, thread, out);
    }
  }

 private:
  static constexpr int64_t kInStep = Form::kInStep, kOut = Form::kOut;
  static constexpr int kInPlanes = Form::kInPlanes, kOutPlanes = Form::kOutPlanes;

  int64_t panels() const { return (outputs_ + kPanel<S> - 1) / kPanel<S>; }

  // Transforms a row of tiles, the first of which is number `tile` of the block.
  void read(int64_t row, int64_t tile, S* strip, S* in) const {
    strip_.fill(row / tiles_h_, row % tiles_h_ * kInStep, source_, strip);
    for (int64_t j = 0; j < tiles_w_; ++j, ++tile)
      transform_input<Form>(strip_.column(strip, j * kInStep), strip_.row_stride(), strip_.channels(),
                            Rows<S>::tile(in + tile / kTileRows * tile_size(inputs_)).from_row(tile % kTileRows),
                            in_stride_);
  }

  void announce_outputs(int64_t row, Ahead& ahead) const {
    const int64_t top = row % tiles_h_ * kOut, height = std::min(kOut, plan_.out_height - top);
    sink_.announce((row / tiles_h_ * plan_.out_height + top) * plan_.out_width, height * plan_.out_width, ahead);
  }

  // Products [begin, end) of all products of all panels; what is summed into the same numbers stays together.
  void multiply(const Range& mine, int64_t tiles, const S* in, S* out, Ahead& ahead) const {
    ahead.spread((mine.end - mine.begin) * ((tiles + kTileRows - 1) / kTileRows * inputs_));
    for (int plane = 0; plane < kOutPlanes; ++plane) {
      const Range products = Form::products_of(plane);
      for (int64_t panel = 0; panel < panels(); ++panel) {
        const int64_t number = products.begin * panels() + panel * (products.end - products.begin);
        if (mine.begin <= number && number < mine.end)
          multiply_panel(products, panel * kPanel<S>, tiles, in, out + plane * out_stride_, ahead);
      }
    }
  }

  // Adds up products for a panel of outputs from `first` on.
  void multiply_panel(const Range& products, int64_t first, int64_t tiles, const S* in, S* out, Ahead& ahead) const {
    const int64_t columns = std::min(padded_outputs_ - first, kPanel<S>);
    const S* panel = packed_ + (products.begin * padded_outputs_ + first * (products.end - products.begin)) * inputs_;
    for (int64_t product = products.begin; product < products.end; ++product, panel += columns * inputs_) {
      if (is_shared_)  // the next panel follows this one; large filters come from memory
        ahead.add_first(panel + columns * inputs_, columns * inputs_ * static_cast<int64_t>(sizeof(S)),
                        (tiles + kTileRows - 1) / kTileRows * inputs_);
      const S* tile = in + Form::in_plane(static_cast<int>(product)) * in_stride_;
      for (int64_t t = 0; t < tiles; t += kTileRows, tile += tile_size(inputs_)) {
        S* rows[kTileRows];
        for (int i = 0; i < kTileRows; ++i) rows[i] = out + (t + i) * padded_outputs_ + first;
        const int count = static_cast<int>(std::min<int64_t>(kTileRows, tiles - t));
        for (int64_t done = 0; done < inputs_; done += kPieceDepth) {
          const int64_t n = std::min(kPieceDepth, inputs_ - done);
          multiply_tile(tile + done * kTileRows, panel + done * columns, n, rows, count, columns,
                        product > products.begin || done > 0, ahead.take(n));
        }
      }
    }
  }

  void write(int64_t row, int64_t tile, int thread, const S* out) {
    const int64_t top = row % tiles_h_ * kOut, height = std::min(kOut, plan_.out_height - top);
    const int64_t pixel = (row / tiles_h_ * plan_.out_height + top) * plan_.out_width;
    S* y = sink_.rows(thread, pixel);
    const int64_t stride = sink_.row_stride();
    for (int64_t j = 0; j < tiles_w_; ++j, ++tile) {
      const int64_t width = std::min(kOut, plan_.out_width - j * kOut);
      for (int64_t k = 0; k < outputs_; k += kLanes<S>) {
        const int lanes = static_cast<int>(std::min<int64_t>(kLanes<S>, outputs_ - k));
        const S* t = out + tile * padded_outputs_ + k;
        S* pixel_of_tile = y + j * kOut * stride + k;
        Form::output([&](int plane) { return load(t + plane * out_stride_); },
                     [&](int a, int b, Vector<S> v) {
                       if (a < height && b < width) store(pixel_of_tile + (a * plan_.out_width + b) * stride, v, lanes);
                     });
      }
    }
    sink_.finish(thread, y, pixel, height * plan_.out_width);
  }

  const WinogradPlan& plan_;
  int64_t inputs_, outputs_, padded_outputs_;  // channels
  const S* packed_;
  const Source<S>& source_;
  Sink<S>& sink_;
  int64_t tiles_h_, tiles_w_;
  TileStrip<S> strip_;
  bool is_shared_;
  int64_t rows_;                    // of tiles in a block
  int64_t in_stride_, out_stride_;  // elements from one plane to the next
  S *strips_, *in_, *out_;
};

constexpr int64_t kPackedInputs = 16;  // at a time: a cache line of a filter in channels_last

// The filters of kTaps x kTaps between some inputs and a register's lanes of outputs. A contiguous filter is turned as
// it lies, input by input, any other tap by tap.
template <int kTaps, class S>
class FilterRegisters {
 public:
  void read(const Filter<S>& f, int64_t input, int64_t inputs, int64_t output, int lanes) {
    const S* from = f.data + input * f.input_stride + output * f.output_stride;
    const bool is_contiguous = f.input_stride == kArea && f.r_stride == kTaps && f.s_stride == 1;
    of_input_ = is_contiguous ? kArea : 1;
    of_tap_ = is_contiguous ? 1 : kPackedInputs;
    if (is_contiguous) return transpose(from, f.output_stride, lanes, inputs * kArea, numbers_[0], kLanes<S>);
    for (int tap = 0; tap < kArea; ++tap) {
      const S* own = from + tap / kTaps * f.r_stride + tap % kTaps * f.s_stride;
      S* to = numbers_[tap * kPackedInputs];
      if (f.input_stride == 1)
        transpose(own, f.output_stride, lanes, inputs, to, kLanes<S>);
      else if (f.output_stride == 1)
        for (int64_t c = 0; c < inputs; ++c, to += kLanes<S>) store(to, load(own + c * f.input_stride, lanes));
      else
        for (int64_t c = 0; c < inputs; ++c, to += kLanes<S>)
          for (int lane = 0; lane < lanes; ++lane) to[lane] = own[lane * f.output_stride + c * f.input_stride];
    }
  }

  Vector<S> operator()(int64_t input, int tap) const { return load(numbers_[input * of_input_ + tap * of_tap_]); }

 private:
  static constexpr int kArea = kTaps * kTaps;
  int64_t of_input_ = 1, of_tap_ = kPackedInputs;  // registers from one to the next
  alignas(64) S numbers_[kArea * kPackedInputs][kLanes<S>] = {};
};

// Transforms the filters of one panel for all products: [planes of outputs][panel][products of it][inputs, columns].
template <class Form, class S>
void pack_panel(const Filter<S>& f, int64_t first, int64_t padded, S* packed) {
  constexpr int N = kLanes<S>, kTaps = Form::kTaps;
  const int64_t columns = std::min(kPanel<S>, padded - first);
  const bool streams = is_streamed<Form>(f);
  S* products[Form::kProducts];
  for (int plane = 0; plane < Form::kOutPlanes; ++plane) {
    const Range r = Form::products_of(plane);
    for (int64_t i = r.begin; i < r.end; ++i)
      products[i] = packed + (r.begin * padded + first * (r.end - r.begin) + (i - r.begin) * columns) * f.inputs;
  }
  FilterRegisters<kTaps, S> taps;
  for (int64_t input = 0; input < f.inputs; input += kPackedInputs)
    for (int64_t v = 0; v < columns; v += N) {
      const int64_t inputs = std::min(kPackedInputs, f.inputs - input);
      const int lanes = static_cast<int>(std::min<int64_t>(N, f.outputs - first - v));
      taps.read(f, input, inputs, first + v, lanes);
      for (int64_t c = 0; c < inputs; ++c) {
        const int64_t offset = (input + c) * columns + v;
        Form::filter([&](int i, int j) { return taps(c, i * kTaps + j); },
                     [&](int product, Vector<S> value) {
                       S* to = products[product] + offset;
                       streams ? stream(to, value) : store(to, value);
                     });
      }
    }
}

// Calls f(form) with the form of this algorithm.
template <class S, class F>
void visit_form(ConvAlgorithm algorithm, const Filter<S>& filter, const F& f) {
  switch (algorithm) {
    case ConvAlgorithm::winograd_f2: return f(DenseForm<2, 3, S>());
    case ConvAlgorithm::winograd_f4: return f(DenseForm<4, 3, S>());
    case ConvAlgorithm::winograd_f5: return f(DenseForm<5, 3, S>());
    case ConvAlgorithm::winograd_s2: return filter.is_transposed ? f(StridedDgradForm<S>()) : f(StridedForm<S>());
    case ConvAlgorithm::winograd_stem: return f(DenseForm<4, 4, S>());
    default: throw std::invalid_argument("not an algorithm of Winograd's");
  }
}

}  // namespace

template <class S>
int64_t packed_winograd_size(ConvAlgorithm algorithm, const Filter<S>& filter) {
  int64_t size = 0;
  visit_form(algorithm, filter, [&](auto form) { size = packed_size<decltype(form)>(filter); });
  return size;
}

template <class S>
void pack_winograd(ConvAlgorithm algorithm, const Filter<S>& filter, int threads, S* packed) {
  const int64_t padded = padded_outputs(filter), panels = (padded + kPanel<S> - 1) / kPanel<S>;
  visit_form(algorithm, filter, [&](auto form) {
    using Form = decltype(form);
    for_each(panels, threads_for(packed_size<Form>(filter), threads),
             [&](int, int64_t panel) { pack_panel<Form>(filter, panel * kPanel<S>, padded, packed); });
  });
}

template <class S>
void winograd_conv(ConvAlgorithm algorithm, const WinogradPlan& plan, const Filter<S>& filter, const S* packed,
                   const Source<S>& source, Sink<S>& sink, int threads) {
  visit_form(algorithm, filter, [&](auto form) {
    WinogradConv<decltype(form), S> conv(plan, filter, packed, source, sink, threads);
    parallel(threads, [&](int part, int parts) { conv.run(part, parts); });
  });
}

#define FUSED_RESNET_INSTANTIATE(S)                                                                                \
  template int64_t packed_winograd_size<S>(ConvAlgorithm, const Filter<S>&);                                       \
  template void pack_winograd<S>(ConvAlgorithm, const Filter<S>&, int, S*);                                        \
  template void winograd_conv<S>(ConvAlgorithm, const WinogradPlan&, const Filter<S>&, const S*, const Source<S>&, \
                                 Sink<S>&, int);
FUSED_RESNET_INSTANTIATE(float)
FUSED_RESNET_INSTANTIATE(double)

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
