// The weight gradient of a 3x3 convolution in the Winograd domain: for each plane of the filter a product over tiles,
// of the transformed gradient and the transformed input, and one transform back at the end.
//
// All threads transform a block of tiles together, and each then multiplies for a share of the result.
#include <algorithm>
#include <stdexcept>

#include "parallel.h"
#include "winograd_forms.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

constexpr int64_t kBlockBytes = 4 * 1024 * 1024;  // of L3, for a block
constexpr int64_t kMinTiles = 128;                // the longer a block, the less often the result is added to

template <class Form, class S>
class WinogradWgrad {
 public:
  WinogradWgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads)
      : shape_(shape),
        u_(u),
        g_(g),
        tiles_h_((shape.out_height + kOut - 1) / kOut),
        tiles_w_((shape.out_width + kOut - 1) / kOut),
        rows_of_sums_(round_up(shape.out_channels, kColumnRows)),
        columns_(round_up(shape.channels, kLanes<S>)),
        u_strip_(Form::kIn, (tiles_w_ - 1) * kInStep + Form::kIn, shape.channels, shape.height, shape.width,
                 shape.pad_h, shape.pad_w),
        g_strip_(kOut, tiles_w_ * kOut, shape.out_channels, shape.out_height, shape.out_width, 0, 0) {
    const int64_t row_bytes =
        tiles_w_ * (kInPlanes * columns_ + kOutPlanes * rows_of_sums_) * static_cast<int64_t>(sizeof(S));
    rows_ = std::min(std::max(kBlockBytes / row_bytes, (kMinTiles + tiles_w_ - 1) / tiles_w_), shape.batch * tiles_h_);
    tiles_ = rows_ * tiles_w_;
    u_stride_ = round_up(columns_, kPanel<S>) * tiles_ + 16;
    g_row_ = round_up(std::max(rows_of_sums_, g_strip_.channels()), 16) + 16;  // odd in cache lines
    g_stride_ = g_row_ * tiles_;
    u_strips_ = workspace<S>(Slot::strips, u_strip_.size() * threads);
    g_strips_ = workspace<S>(Slot::rows, g_strip_.size() * threads);
    u_tiles_ = workspace<S>(Slot::tiles, kInPlanes * u_stride_);
    g_tiles_ = workspace<S>(Slot::gradients, kOutPlanes * g_stride_);
    sums_ = workspace<S>(Slot::sums, Form::kProducts * rows_of_sums_ * columns_);
  }

  void run(int part, int parts, S* g_weight, const FilterStrides& strides) {
    S *u_strip = u_strips_ + part * u_strip_.size(), *g_strip = g_strips_ + part * g_strip_.size();
    u_strip_.clear(u_strip);
    g_strip_.clear(g_strip);
    const int64_t total = shape_.batch * tiles_h_;
    for (int64_t row = 0; row < total; row += rows_) {
      const int64_t rows = std::min(rows_, total - row);
      const Range mine = share(rows, part, parts);
      for (int64_t t = mine.begin; t < mine.end; ++t) {
        read_input(row + t, t * tiles_w_, u_strip);
        read_gradient(row + t, t * tiles_w_, g_strip);
      }
      Ahead ahead;
      const Range next = share(std::min(rows_, total - row - rows), part, parts);
      for (int64_t t = next.begin; t < next.end; ++t) announce(row + rows + t, ahead);
      barrier(parts);
      multiply(rows * tiles_w_, part, parts, row > 0, ahead);
      barrier(parts);
    }
    write(share(shape_.out_channels, part, parts), g_weight, strides);
  }

 private:
  static constexpr int64_t kInStep = Form::kInStep, kOut = Form::kOut;
  static constexpr int kInPlanes = Form::kInPlanes, kOutPlanes = Form::kOutPlanes;

  void read_input(int64_t row, int64_t tile, S* strip) const {
    u_strip_.fill(row / tiles_h_, row % tiles_h_ * kInStep, u_, strip);
    for (int64_t j = 0; j < tiles_w_; ++j, ++tile)
      transform_input<Form>(u_strip_.column(strip, j * kInStep), u_strip_.row_stride(), u_strip_.channels(),
                            Rows<S>::panels(u_tiles_, tiles_).from_row(tile), u_stride_);
  }

  void read_gradient(int64_t row, int64_t tile, S* strip) const {
    g_strip_.fill(row / tiles_h_, row % tiles_h_ * kOut, g_, strip);
    const int64_t channels = g_strip_.channels(), row_stride = g_strip_.row_stride();
    for (int64_t j = 0; j < tiles_w_; ++j, ++tile)
      for (int64_t k = 0; k < channels; k += kLanes<S>) {
        const S* g = g_strip_.column(strip, j * kOut) + k;
        S* out = g_tiles_ + tile * g_row_ + k;
        Form::gradient([&](int a, int b) { return load(g + a * row_stride + b * channels); },
                       [&](int plane, Vector<S> v) { store(out + plane * g_stride_, v); });
      }
  }

  void announce(int64_t row, Ahead& ahead) const {
    u_strip_.announce(row / tiles_h_, row % tiles_h_ * kInStep, kInStep, u_, ahead);
    g_strip_.announce(row / tiles_h_, row % tiles_h_ * kOut, kOut, g_, ahead);
  }

  void multiply(int64_t tiles, int part, int parts, bool adds, Ahead& ahead) const {
    const int64_t panels = (columns_ + kPanel<S> - 1) / kPanel<S>, blocks = rows_of_sums_ / kColumnRows;
    const Range items = share(Form::kProducts * panels * blocks, part, parts);
    ahead.spread((items.end - items.begin) * tiles);
    for (int64_t item = items.begin; item < items.end; ++item) {
      const int64_t first = item / blocks % panels * kPanel<S>, k = item % blocks * kColumnRows;
      const int product = static_cast<int>(item / blocks / panels);
      multiply_columns_panel(g_tiles_ + Form::out_plane(product) * g_stride_ + k, g_row_,
                             u_tiles_ + Form::in_plane(product) * u_stride_ + first * tiles_, {1, tiles, kPanel<S>, 0},
                             columns_ - first, sums_ + (product * rows_of_sums_ + k) * columns_ + first, columns_, adds,
                             ahead.take(tiles));
    }
  }

  void write(const Range& outputs, S* g_weight, const FilterStrides& w) const {
    for (int64_t k = outputs.begin; k < outputs.end; ++k)
      for (int64_t c = 0; c < shape_.channels; c += kLanes<S>) {
        const S* sums = sums_ + k * columns_ + c;
        const int lanes = static_cast<int>(std::min<int64_t>(kLanes<S>, shape_.channels - c));
        Form::filter_gradient([&](int product) { return load(sums + product * rows_of_sums_ * columns_); },
                              [&](int r, int s, Vector<S> v) {
                                S values[kLanes<S>];
                                store(values, v);
                                for (int i = 0; i < lanes; ++i)
                                  g_weight[k * w.k + (c + i) * w.c + r * w.r + s * w.s] = values[i];
                              });
      }
  }

  const ConvShape& shape_;
  const Source<S>&u_, &g_;
  int64_t tiles_h_, tiles_w_;
  int64_t rows_of_sums_, columns_;  // of one plane of the result, padded
  TileStrip<S> u_strip_, g_strip_;
  int64_t rows_, tiles_;                 // of a block: rows of tiles, and tiles
  int64_t u_stride_, g_row_, g_stride_;  // from plane to plane, and from tile to tile
  S *u_strips_, *g_strips_, *u_tiles_, *g_tiles_, *sums_;
};

template <class Form, class S>
void run(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads, S* g_weight,
         const FilterStrides& strides) {
  WinogradWgrad<Form, S> wgrad(shape, u, g, threads);
  parallel(threads, [&](int part, int parts) { wgrad.run(part, parts, g_weight, strides); });
}

}  // namespace

template <class S>
void winograd_wgrad(ConvAlgorithm algorithm, const ConvShape& shape, const Source<S>& u, const Source<S>& g,
                    int threads, S* g_weight, const FilterStrides& strides) {
  switch (algorithm) {
    case ConvAlgorithm::winograd_f2: return run<DenseForm<2, 3, S>>(shape, u, g, threads, g_weight, strides);
    case ConvAlgorithm::winograd_f4: return run<DenseForm<4, 3, S>>(shape, u, g, threads, g_weight, strides);
    case ConvAlgorithm::winograd_f5: return run<DenseForm<5, 3, S>>(shape, u, g, threads, g_weight, strides);
    case ConvAlgorithm::winograd_s2: return run<StridedForm<S>>(shape, u, g, threads, g_weight, strides);
    case ConvAlgorithm::winograd_stem: return run<DenseForm<4, 4, S>>(shape, u, g, threads, g_weight, strides);
    default: throw std::invalid_argument("not an algorithm of Winograd's");
  }
}

template void winograd_wgrad<float>(ConvAlgorithm, const ConvShape&, const Source<float>&, const Source<float>&, int,
                                    float*, const FilterStrides&);
template void winograd_wgrad<double>(ConvAlgorithm, const ConvShape&, const Source<double>&, const Source<double>&, int,
                                     double*, const FilterStrides&);

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
