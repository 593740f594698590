// What is done with a convolution's output while it is in the cache.
#pragma once

#include <memory>
#include <vector>

#include "batch_norm.h"
#include "conv.h"
#include "dispatch.h"
#include "kernels.h"
#include "moments.h"
#include "pointwise.h"
#include "tiles.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// kCount registers of columns beside each other.
template <bool kFull, int kCount>
struct Columns {
  Tile<kFull> first;

  // Calls f(tile, j) for each, j a constant.
  template <class F>
  void each(const F& f) const {
    f(first, std::integral_constant<int, 0>{});
    if constexpr (kCount > 1)
      f(Tile<kFull>{first.offset + first.lanes, first.channel + first.lanes, first.lanes, first.row},
        std::integral_constant<int, 1>{});
  }
};

// A sink that ends in a tensor of type T. The engine writes there at once, unless the tensor's type is another or it is
// streamed past the caches: then it writes to rows of the thread, and finish() passes them on.
template <class T>
class TensorSink : public Sink<Accumulate<T>>, public PieceSink<Accumulate<T>> {
 public:
  using S = Accumulate<T>;

  // keeps_out: finish() reads what stands in `out` before.
  TensorSink(int64_t pixels, int64_t channels, void* out, bool keeps_out = false)
      : channels_(channels),
        out_(out, {pixels, channels, 1}),
        is_direct_(std::is_same_v<T, S> && !keeps_out && !out_.is_streamed() &&
                   channels * sizeof(S) % kAliasedBytes != 0),
        stride_(is_direct_ ? channels : round_up(channels, 16) + 16) {}

  void start(int threads, int64_t pixels) override {
    if (is_direct_) return;
    rows_size_ = pixels * stride_;
    rows_ = workspace<S>(Slot::rows, rows_size_ * threads);
  }

  S* rows(int thread, int64_t pixel) override {
    if constexpr (std::is_same_v<T, S>)
      if (is_direct_) return out_.data() + pixel * channels_;
    return rows_ + thread * rows_size_;
  }

  int64_t row_stride() const override { return stride_; }

 protected:
  // Rows so far apart fall into a few sets of the caches, where they throw each other and the matrices out.
  static constexpr int64_t kAliasedBytes = 2048;

  // Calls f(group) for `count` pixels, group by group; the tiles' offsets are those of the tensor.
  template <class F>
  void visit(int64_t pixel, int64_t count, const F& f) {
    ChannelsLast::visit_rows<S>(channels_, pixel, pixel + count, f);
  }

  // What the engine has written for a tile, to the rows from `pixel` on.
  template <class Tile>
  Vector<S> written(const S* rows, int64_t pixel, const Tile& tile) const {
    return fused_resnet::load(rows + (tile.row - pixel) * stride_ + tile.channel, tile.lanes);
  }

  // Stores them as they are.
  void pass_on(const S* rows, int64_t pixel, int64_t count) {
    if (is_direct_) return;
    visit(pixel, count, [&](const auto& group) {
      group.each([&](const auto& tile) { out_.store(tile, written(rows, pixel, tile)); });
    });
  }

  // Calls f(column, group) for the registers of a piece's columns, two by two: 64 bytes of a row at a time would be
  // half of what memory takes together.
  template <class F>
  static void visit_columns(const Piece<S>& piece, const F& f) {
    constexpr int N = kLanes<S>;
    int64_t c = 0;
    for (; c + 2 * N <= piece.columns; c += 2 * N) f(c, Columns<true, 2>{{0, piece.channel + c, N}});
    for (; c + N <= piece.columns; c += N) f(c, Columns<true, 1>{{0, piece.channel + c, N}});
    if (c < piece.columns) f(c, Columns<false, 1>{{0, piece.channel + c, static_cast<int>(piece.columns - c)}});
  }

  // Calls f(sums, tile, j) for these columns of each row of a piece, j being the register, 0 or 1.
  template <bool kFull, int kCount, class F>
  void visit_rows(const Piece<S>& piece, int64_t column, const Columns<kFull, kCount>& columns, const F& f) const {
    for (int64_t r = 0; r < piece.run_count; ++r) {
      const PieceRun& run = piece.runs[r];
      const S* row = piece.rows + run.row * piece.row_stride + column;
      int64_t offset = run.pixel * channels_;
      for (int64_t i = 0; i < run.count; ++i, row += piece.row_stride, offset += piece.pixel_step * channels_)
        columns.each([&](auto tile, auto j) {
          tile.offset = offset + tile.channel;
          f(load(row + j * kLanes<S>), tile, j);
        });
    }
  }

  int64_t channels_;
  Output<T> out_;
  bool is_direct_;

 private:
  int64_t stride_, rows_size_ = 0;
  S* rows_ = nullptr;
};

inline int64_t output_pixels(const ConvShape& s) {
  return s.batch * s.out_height * s.out_width;
}

// Stores y, with the convolution's own bias, and takes its statistics where they are asked for.
template <class T>
class ForwardSink final : public TensorSink<T> {
 public:
  using S = Accumulate<T>;

  ForwardSink(const ConvForwardArgs& a, int threads)
      : TensorSink<T>(output_pixels(a.conv.shape), a.conv.shape.out_channels, a.y),
        bias_(static_cast<const S*>(a.bias)),
        moments_(a.mean ? a.conv.shape.out_channels : 0, threads) {
    if (!a.mean) return;
    for (int i = 0; i < threads; ++i) {
      sums_.push_back(std::make_unique<RowMoments<S>>(this->channels_, moments_, i));
      piece_sums_.push_back(std::make_unique<PieceMoments<S>>(this->channels_, moments_, i));
    }
  }

  void finish(int thread, S* rows, int64_t pixel, int64_t count) override {
    if (bias_) add_bias(rows, count);
    if constexpr (std::is_same_v<T, S>) {
      if (!sums_.empty()) {
        sums_[thread]->add(rows, this->row_stride(), count, [&](int64_t row, int64_t c, int lanes, Vector<S> v) {
          const int64_t offset = (pixel + row) * this->channels_ + c;
          if (!this->is_direct_) this->out_.store(Tile<false>{offset, c, lanes}, v);
        });
        return;
      }
    }
    this->pass_on(rows, pixel, count);
    if (!sums_.empty())  // of what is stored, rounding included
      sums_[thread]->add(this->out_.data() + pixel * this->channels_, this->channels_, count,
                         [](int64_t, int64_t, int, Vector<S>) {});
  }

  void finish(int thread, const Piece<S>& piece) override {
    this->visit_columns(piece, [&](int64_t column, const auto& columns) {
      Vector<S> bias[2] = {};
      if (bias_) columns.each([&](const auto& tile, auto j) { bias[j] = load(bias_ + tile.channel, tile.lanes); });
      const auto store = [&](Vector<S> v, const auto& tile, auto j) {
        v += bias[j];
        this->out_.store(tile, v);
        if constexpr (!std::is_same_v<T, S>) v = tile.load(this->out_.data());  // rounding included
        return v;
      };
      if (piece_sums_.empty())
        this->visit_rows(piece, column, columns, store);
      else
        piece_sums_[thread]->add(columns, [&](const auto& f) {
          this->visit_rows(piece, column, columns,
                           [&](Vector<S> v, const auto& tile, auto j) { f(store(v, tile, j), j); });
        });
    });
  }

  void end_block(int thread) override {
    if (!piece_sums_.empty()) piece_sums_[thread]->end_block();
  }

  void statistics(void* mean, void* var) const {
    if (!sums_.empty()) moments_.finish(static_cast<S*>(mean), static_cast<S*>(var));
  }

 private:
  void add_bias(S* rows, int64_t count) const {
    for (int64_t i = 0; i < count; ++i, rows += this->row_stride())
      for (int64_t c = 0; c < this->channels_; ++c) rows[c] += bias_[c];
  }

  const S* bias_;
  Moments moments_;
  std::vector<std::unique_ptr<RowMoments<S>>> sums_;
  std::vector<std::unique_ptr<PieceMoments<S>>> piece_sums_;
};

// From dgrad's g_u to g_x: act' and the batch norm's scale, the addend, and the two channel sums.
template <class T, Activation A>
class DgradSink final : public TensorSink<T> {
 public:
  using S = Accumulate<T>;

  DgradSink(const ConvDgradArgs& a, int threads)
      : TensorSink<T>(a.conv.shape.batch * a.conv.shape.height * a.conv.shape.width, a.conv.shape.channels, a.g_x,
                      a.addend == a.g_x),
        x_(static_cast<const T*>(a.x)),
        addend_(static_cast<const T*>(a.addend)),
        is_plain_(A == Activation::identity && !a.bn.mean),
        slope_(static_cast<S>(a.activation.negative_slope)),
        norm_(a.conv.shape.channels, a.bn),
        s_({1, a.conv.shape.channels, 1}, threads),
        t_({1, a.conv.shape.channels, 1}, threads) {}

  void finish(int thread, S* rows, int64_t pixel, int64_t count) override {
    if (is_plain_ && !addend_) return this->pass_on(rows, pixel, count);
    if (is_plain_)
      return this->visit(pixel, count, [&](const auto& group) {
        group.each([&](const auto& tile) { store(tile, this->written(rows, pixel, tile)); });
      });
    for (int64_t done = 0; done < count; done += ChannelsLast::kRows)
      finish_block(thread, rows, pixel, done, std::min(done + ChannelsLast::kRows, count));
  }

  void finish(int thread, const Piece<S>& piece) override {
    this->visit_columns(piece, [&](int64_t column, const auto& columns) {
      if (is_plain_)
        return this->visit_rows(piece, column, columns, [&](Vector<S> g, const auto& tile, auto) { store(tile, g); });
      NormVector<S> bn[2];
      columns.each([&](const auto& tile, auto j) { bn[j] = norm_.channels_from(tile.channel); });
      Vector<S> sum_p[2] = {}, sum_px[2] = {};
      this->visit_rows(piece, column, columns, [&](Vector<S> g, const auto& tile, auto j) {
        const Vector<S> x = tile.load(x_), p = g * activate_derivative<A>(bn[j](x), slope_);
        sum_p[j] += p;
        sum_px[j] += p * (x - bn[j].mean);
        store(tile, p * bn[j].scale);
      });
      columns.each([&](const auto& tile, auto j) {
        s_.add(thread, tile.channel, sum_p[j]);
        t_.add(thread, tile.channel, sum_px[j]);
      });
    });
  }

  void end_block(int thread) override {
    if (is_plain_) return;
    s_.flush(thread, 0);
    t_.flush(thread, 0);
  }

  void announce(int64_t pixel, int64_t count, Ahead& ahead) const override {
    for (const T* input : {is_plain_ ? nullptr : x_, addend_})
      if (input) ahead.add(input + pixel * this->channels_, count * this->channels_ * static_cast<int64_t>(sizeof(T)));
  }

  void gradients(const BatchNormArgs& bn, void* g_bn) const {
    if (g_bn) norm_.gradients(bn, s_.total(), t_.total(), static_cast<S*>(g_bn));
  }

 private:
  void finish_block(int thread, const S* rows, int64_t pixel, int64_t begin, int64_t end) {
    this->visit(pixel + begin, end - begin, [&](const auto& group) {
      const auto bn = norm_.channels_from(group.channel());
      Vector<S> sum_p{}, sum_px{};
      group.each([&](const auto& tile) {
        const Vector<S> x = tile.load(x_);
        const Vector<S> g = this->written(rows, pixel, tile);
        const Vector<S> p = g * activate_derivative<A>(bn(x), slope_);
        sum_p += p;
        sum_px += p * (x - bn.mean);
        store(tile, p * bn.scale);
      });
      s_.add(thread, group.channel(), sum_p);
      t_.add(thread, group.channel(), sum_px);
    });
    s_.flush(thread, 0);
    t_.flush(thread, 0);
  }

  template <class Tile>
  void store(const Tile& tile, Vector<S> g) const {
    this->out_.store(tile, addend_ ? g + tile.load(addend_) : g);
  }

  const T *x_, *addend_;
  bool is_plain_;
  S slope_;
  Norm<S> norm_;
  ChannelSums<S, ChannelsLast> s_, t_;
};

// Norm, residual and activation, for inference.
template <class T, Activation A>
class InferenceSink final : public TensorSink<T> {
 public:
  using S = Accumulate<T>;

  explicit InferenceSink(const ConvBnAddActArgs& a)
      : TensorSink<T>(output_pixels(a.conv.shape), a.conv.shape.out_channels, a.out),
        norm_(a.conv.shape.out_channels, a.bn),
        bias_(
            a.conv.shape.out_channels, nullptr, [](int64_t) { return S(1); },
            [&](int64_t c) { return a.bias ? static_cast<const S*>(a.bias)[c] : S(0); }),
        residual_(static_cast<const T*>(a.residual)),
        slope_(static_cast<S>(a.activation.negative_slope)) {}

  void finish(int, S* rows, int64_t pixel, int64_t count) override {
    this->visit(pixel, count, [&](const auto& group) {
      const auto bn = norm_.channels_from(group.channel());
      const Vector<S> bias = bias_.channels_from(group.channel()).bias;
      group.each([&](const auto& tile) {
        Vector<S> z = bn(this->written(rows, pixel, tile) + bias);
        if (residual_) z += tile.load(residual_);
        this->out_.store(tile, activate<A>(z, slope_));
      });
    });
  }

  void finish(int, const Piece<S>& piece) override {
    this->visit_columns(piece, [&](int64_t column, const auto& columns) {
      NormVector<S> bn[2], bias[2];
      columns.each([&](const auto& tile, auto j) {
        bn[j] = norm_.channels_from(tile.channel);
        bias[j] = bias_.channels_from(tile.channel);
      });
      this->visit_rows(piece, column, columns, [&](Vector<S> v, const auto& tile, auto j) {
        Vector<S> z = bn[j](v + bias[j].bias);
        if (residual_) z += tile.load(residual_);
        this->out_.store(tile, activate<A>(z, slope_));
      });
    });
  }

  void announce(int64_t pixel, int64_t count, Ahead& ahead) const override {
    if (residual_)
      ahead.add(residual_ + pixel * this->channels_, count * this->channels_ * static_cast<int64_t>(sizeof(T)));
  }

 private:
  Norm<S> norm_, bias_;
  const T* residual_;
  S slope_;
};

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
