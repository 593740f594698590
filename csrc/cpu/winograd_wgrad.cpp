// The weight gradient of a 3x3 convolution in the Winograd domain: for each plane of the filter a product over tiles,
// of the transformed gradient and the transformed input, and one transform back at the end.
//
// As in gather_wgrad.cpp each thread has blocks of tiles and an accumulator of its own where the result is small. Where
// it is large all threads transform a block together, and each then multiplies for a share of the result.
#include <unistd.h>

#include <algorithm>
#include <stdexcept>

#include "parallel.h"
#include "winograd_forms.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// Bytes of a core's second-level cache, 1 MiB where the system does not tell.
int64_t l2_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return 1024 * 1024;
}

// Of L2, for a thread's own accumulator and for its block; of L3, for a block of all.
int64_t own_bytes() {
  return l2_bytes() * 5 / 16;
}
int64_t own_block_bytes() {
  return std::max<int64_t>(l2_bytes() * 3 / 8, 512 * 1024);
}
constexpr int64_t kSharedBlockBytes = 4 * 1024 * 1024;
constexpr int64_t kMinTiles = 128;  // of all: the longer a block, the less often the result is added to

// One operand of the products, [crews, planes, tiles, channels].
template <class S>
struct Operand {
  Rows<S> rows;  // of the first plane
  int64_t plane_stride, size;

  Operand of_crew(int number) const {
    Operand own = *this;
    own.rows.data += number * size;
    return own;
  }
  S* plane(int i) const { return rows.data + i * plane_stride; }
};

// The rows of the result are the outputs of the convolution and its columns the inputs, or the other way round where
// the inputs would fill but half of a panel.
template <class Form, class S>
class WinogradWgrad {
 public:
  WinogradWgrad(const ConvShape& shape, const Source<S>& u, const Source<S>& g, int threads)
      : shape_(shape),
        u_(u),
        g_(g),
        is_turned_(shape.channels <= kLanes<S> && shape.out_channels > kLanes<S>),
        tiles_h_((shape.out_height + kOut - 1) / kOut),
        tiles_w_((shape.out_width + kOut - 1) / kOut),
        rows_(is_turned_ ? shape.channels : shape.out_channels),
        columns_(is_turned_ ? shape.out_channels : shape.channels),
        padded_rows_(round_up(rows_, kColumnRows)),
        padded_columns_(round_up(columns_, kLanes<S>)),
        u_strip_(Form::kIn, (tiles_w_ - 1) * kInStep + Form::kIn, shape.channels, shape.height, shape.width,
                 shape.pad_h, shape.pad_w),
        g_strip_(kOut, tiles_w_ * kOut, shape.out_channels, shape.out_height, shape.out_width, 0, 0) {
    sums_size_ = Form::kProducts * padded_rows_ * padded_columns_;
    is_alone_ = sums_size_ * static_cast<int64_t>(sizeof(S)) <= own_bytes();
    const int64_t numbers = is_turned_ ? kInPlanes * padded_rows_ + kOutPlanes * padded_columns_
                                       : kInPlanes * padded_columns_ + kOutPlanes * padded_rows_;
    const int64_t row_bytes = tiles_w_ * numbers * static_cast<int64_t>(sizeof(S));
    const int64_t least = is_alone_ ? 1 : (kMinTiles + tiles_w_ - 1) / tiles_w_;
    const int64_t rows = std::max((is_alone_ ? own_block_bytes() : kSharedBlockBytes) / row_bytes, least);
    block_rows_ = std::min(rows, shape.batch * tiles_h_);
    tiles_ = block_rows_ * tiles_w_;
    const int crews = is_alone_ ? threads : 1;
    u_strips_ = workspace<S>(Slot::strips, u_strip_.size() * threads);
    g_strips_ = workspace<S>(Slot::rows, g_strip_.size() * threads);
    u_tiles_ = is_turned_ ? left(Slot::tiles, kInPlanes, crews) : right(Slot::tiles, kInPlanes, crews);
    g_tiles_ = is_turned_ ? right(Slot::gradients, kOutPlanes, crews) : left(Slot::gradients, kOutPlanes, crews);
    sums_ = workspace<S>(Slot::sums, sums_size_ * crews);
  }

  void run(int part, int parts, S* g_weight, const FilterStrides& strides) {
    const Crew crew = Crew::of(part, parts, is_alone_);
    const Operand<S> u_tiles = u_tiles_.of_crew(crew.number), g_tiles = g_tiles_.of_crew(crew.number);
    S *u_strip = u_strips_ + part * u_strip_.size(), *g_strip = g_strips_ + part * g_strip_.size();
    S* sums = sums_ + crew.number * sums_size_;
    u_strip_.clear(u_strip);
    g_strip_.clear(g_strip);
    const Range all = crew.share_of_crew(shape_.batch * tiles_h_);
    if (all.begin == all.end) std::fill_n(sums, sums_size_, S(0));
    for (int64_t row = all.begin; row < all.end; row += block_rows_) {
      const int64_t rows = std::min(block_rows_, all.end - row);
      const Range mine = crew.share_of_member(rows);
      for (int64_t t = mine.begin; t < mine.end; ++t) {
        read_input(row + t, t * tiles_w_, u_strip, u_tiles);
        read_gradient(row + t, t * tiles_w_, g_strip, g_tiles);
      }
      Ahead ahead;
      const Range next = crew.share_of_member(std::min(block_rows_, all.end - row - rows));
      for (int64_t t = next.begin; t < next.end; ++t) announce(row + rows + t, ahead);
      crew.wait();
      multiply(is_turned_ ? u_tiles : g_tiles, is_turned_ ? g_tiles : u_tiles, rows * tiles_w_, crew, sums,
               row > all.begin, ahead);
      crew.wait();
    }
    barrier(parts);
    write(share(rows_, part, parts), crew.crews, g_weight, strides);
  }

 private:
  static constexpr int64_t kInStep = Form::kInStep, kOut = Form::kOut;
  static constexpr int kInPlanes = Form::kInPlanes, kOutPlanes = Form::kOutPlanes;

  // Memory for an operand as the left side of multiply_columns, whose tiles are an odd number of cache lines apart,
  // lest they share a cache's sets ...
  Operand<S> left(Slot slot, int planes, int crews) const {
    const int64_t row = round_up(padded_rows_, 16) | 16, stride = row * tiles_;
    return {Rows<S>::plain(workspace<S>(slot, planes * stride * crews), row), stride, planes * stride};
  }
  // ... and as the right side.
  Operand<S> right(Slot slot, int planes, int crews) const {
    const int64_t stride = round_up(padded_columns_, kPanel<S>) * tiles_ + 16;
    return {Rows<S>::panels(workspace<S>(slot, planes * stride * crews), tiles_), stride, planes * stride};
  }

  void read_input(int64_t row, int64_t tile, S* strip, const Operand<S>& out) const {
    u_strip_.fill(row / tiles_h_, row % tiles_h_ * kInStep, u_, strip);
    for (int64_t j = 0; j < tiles_w_; ++j, ++tile)
      transform_input<Form>(u_strip_.column(strip, j * kInStep), u_strip_.row_stride(), u_strip_.channels(),
                            out.rows.from_row(tile), out.plane_stride);
  }

  void read_gradient(int64_t row, int64_t tile, S* strip, const Operand<S>& out) const {
    g_strip_.fill(row / tiles_h_, row % tiles_h_ * kOut, g_, strip);
    for (int64_t j = 0; j < tiles_w_; ++j, ++tile)
      transform_gradient<Form>(g_strip_.column(strip, j * kOut), g_strip_.row_stride(), g_strip_.channels(),
                               out.rows.from_row(tile), out.plane_stride);
  }

  void announce(int64_t row, Ahead& ahead) const {
    u_strip_.announce(row / tiles_h_, row % tiles_h_ * kInStep, kInStep, u_, ahead);
    g_strip_.announce(row / tiles_h_, row % tiles_h_ * kOut, kOut, g_, ahead);
  }

  void multiply(const Operand<S>& a, const Operand<S>& b, int64_t tiles, const Crew& crew, S* sums, bool adds,
                Ahead& ahead) const {
    const int64_t panels = (padded_columns_ + kPanel<S> - 1) / kPanel<S>, blocks = padded_rows_ / kColumnRows;
    const Range items = crew.share_of_member(Form::kProducts * panels * blocks);
    ahead.spread((items.end - items.begin) * tiles);
    for (int64_t item = items.begin; item < items.end; ++item) {
      const int64_t first = item / blocks % panels * kPanel<S>, k = item % blocks * kColumnRows;
      const int product = static_cast<int>(item / blocks / panels);
      const int in_plane = Form::in_plane(product), out_plane = Form::out_plane(product);
      multiply_columns_panel(a.plane(is_turned_ ? in_plane : out_plane) + k, a.rows.row_stride,
                             b.plane(is_turned_ ? out_plane : in_plane) + first * tiles_, {1, tiles, kPanel<S>, 0},
                             padded_columns_ - first, sums + (product * padded_rows_ + k) * padded_columns_ + first,
                             padded_columns_, adds, ahead.take(tiles));
    }
  }

  // Adds up the crews' sums, in their order, and transforms some rows of them back.
  void write(const Range& rows, int crews, S* g_weight, const FilterStrides& w) const {
    const int64_t row_stride = is_turned_ ? w.c : w.k, column_stride = is_turned_ ? w.k : w.c;
    for (int64_t row = rows.begin; row < rows.end; ++row)
      for (int64_t column = 0; column < columns_; column += kLanes<S>) {
        const S* sums = sums_ + row * padded_columns_ + column;
        const int lanes = static_cast<int>(std::min<int64_t>(kLanes<S>, columns_ - column));
        const auto sum = [&](int product) {
          const S* from = sums + product * padded_rows_ * padded_columns_;
          Vector<S> total = load(from);
          for (int crew = 1; crew < crews; ++crew) total += load(from + crew * sums_size_);
          return total;
        };
        Form::filter_gradient(sum, [&](int r, int s, Vector<S> v) {
          S* to = g_weight + row * row_stride + column * column_stride + r * w.r + s * w.s;
          if (column_stride == 1) return store(to, v, lanes);
          S values[kLanes<S>];
          store(values, v);
          for (int i = 0; i < lanes; ++i) to[i * column_stride] = values[i];
        });
      }
  }

  const ConvShape& shape_;
  const Source<S>&u_, &g_;
  bool is_turned_;
  int64_t tiles_h_, tiles_w_;
  int64_t rows_, columns_, padded_rows_, padded_columns_;  // of one plane of the result
  TileStrip<S> u_strip_, g_strip_;
  int64_t block_rows_, tiles_;  // of a block: rows of tiles, and tiles
  bool is_alone_;               // each thread
  int64_t sums_size_;           // of a crew
  Operand<S> u_tiles_, g_tiles_;
  S *u_strips_, *g_strips_, *sums_;
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
