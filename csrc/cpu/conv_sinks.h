// What is done with a convolution's output while it is in the cache.
#pragma once

#include <memory>
#include <vector>

#include "batch_norm.h"
#include "conv.h"
#include "dispatch.h"
#include "kernels.h"
#include "moments.h"
#include "tiles.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// A sink that ends in a tensor of type T. Outputs are written there at once if the type is that of the engine, else to
// rows of the thread.
template <class T>
class TensorSink : public Sink<Accumulate<T>> {
 public:
  using S = Accumulate<T>;

  TensorSink(int64_t channels, void* out) : channels_(channels), out_(static_cast<T*>(out)) {}

  void start(int threads, int64_t pixels) override {
    if constexpr (!std::is_same_v<T, S>) {
      rows_size_ = pixels * channels_;
      rows_ = workspace<S>(Slot::rows, rows_size_ * threads);
    }
  }

  S* rows(int thread, int64_t pixel, int64_t) override {
    if constexpr (std::is_same_v<T, S>)
      return out_ + pixel * channels_;
    else
      return rows_ + thread * rows_size_;
  }

 protected:
  // out[i] = f(S value of i's register, its tile) for `count` pixels; tile offsets count from the tensor's begin.
  template <class F>
  void map(int thread, int64_t pixel, int64_t count, const F& f) {
    const int64_t begin = pixel * channels_;
    const S* from = rows(thread, pixel, count) - begin;
    ChannelsLast::visit_rows<S>(channels_, pixel, pixel + count,
                                [&](const auto& tile) { tile.store(out_, f(tile.load(from), tile)); });
  }

  int64_t channels_;
  T* out_;

 private:
  int64_t rows_size_ = 0;
  S* rows_ = nullptr;
};

// Stores y, with the convolution's own bias, and takes its statistics where they are asked for.
template <class T>
class ForwardSink final : public TensorSink<T> {
 public:
  using S = Accumulate<T>;

  ForwardSink(const ConvForwardArgs& a, int threads)
      : TensorSink<T>(a.conv.shape.out_channels, a.y), bias_(static_cast<const S*>(a.bias)),
        moments_(a.mean ? a.conv.shape.out_channels : 0, threads) {
    if (a.mean)
      for (int i = 0; i < threads; ++i) sums_.push_back(std::make_unique<RowMoments<S>>(this->channels_, moments_, i));
  }

  void finish(int thread, int64_t pixel, int64_t count) override {
    if (bias_)
      this->map(thread, pixel, count, [&](Vector<S> v, const auto& tile) {
        return v + fused_resnet::load(bias_ + tile.channel, tile.lanes);
      });
    else if (!std::is_same_v<T, S>)
      this->map(thread, pixel, count, [](Vector<S> v, const auto&) { return v; });
    if (!sums_.empty()) sums_[thread]->add(this->out_ + pixel * this->channels_, count);
  }

  void statistics(void* mean, void* var) const {
    if (!sums_.empty()) moments_.finish(static_cast<S*>(mean), static_cast<S*>(var));
  }

 private:
  const S* bias_;
  Moments moments_;
  std::vector<std::unique_ptr<RowMoments<S>>> sums_;
};

// From dgrad's g_u to g_x: act' and the batch norm's scale, and the two channel sums.
template <class T, Activation A>
class DgradSink final : public TensorSink<T> {
 public:
  using S = Accumulate<T>;

  DgradSink(const ConvDgradArgs& a, int threads)
      : TensorSink<T>(a.conv.shape.channels, a.g_x), x_(static_cast<const T*>(a.x)),
        is_plain_(A == Activation::identity && !a.bn.mean && std::is_same_v<T, S>),
        slope_(static_cast<S>(a.activation.negative_slope)), norm_(a.conv.shape.channels, a.bn),
        s_({1, a.conv.shape.channels, 1}, threads), t_({1, a.conv.shape.channels, 1}, threads) {}

  void finish(int thread, int64_t pixel, int64_t count) override {
    if (is_plain_) return;
    for (int64_t done = 0; done < count; done += ChannelsLast::kRows)
      finish_block(thread, pixel, done, std::min(done + ChannelsLast::kRows, count));
  }

  void gradients(const BatchNormArgs& bn, void* g_bn) const {
    if (g_bn) norm_.gradients(bn, s_.total(), t_.total(), static_cast<S*>(g_bn));
  }

 private:
  void finish_block(int thread, int64_t pixel, int64_t begin, int64_t end) {
    const S* g = this->rows(thread, pixel, 0) - pixel * this->channels_;
    ChannelsLast::visit_rows<S>(this->channels_, pixel + begin, pixel + end, [&](const auto& tile) {
      const auto bn = norm_.channels_from(tile.channel);
      const Vector<S> x = tile.load(x_);
      const Vector<S> p = tile.load(g) * activate_derivative<A>(bn(x), slope_);
      s_.add(thread, tile.channel, p);
      t_.add(thread, tile.channel, p * (x - bn.mean));
      tile.store(this->out_, p * bn.scale);
    });
    s_.flush(thread, 0);
    t_.flush(thread, 0);
  }

  const T* x_;
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
      : TensorSink<T>(a.conv.shape.out_channels, a.out), norm_(a.conv.shape.out_channels, a.bn),
        bias_(a.conv.shape.out_channels, nullptr, [](int64_t) { return S(1); },
              [&](int64_t c) { return a.bias ? static_cast<const S*>(a.bias)[c] : S(0); }),
        residual_(static_cast<const T*>(a.residual)), slope_(static_cast<S>(a.activation.negative_slope)) {}

  void finish(int thread, int64_t pixel, int64_t count) override {
    this->map(thread, pixel, count, [&](Vector<S> v, const auto& tile) {
      Vector<S> z = norm_.channels_from(tile.channel)(v + bias_.channels_from(tile.channel).bias);
      if (residual_) z += tile.load(residual_);
      return activate<A>(z, slope_);
    });
  }

 private:
  Norm<S> norm_, bias_;
  const T* residual_;
  S slope_;
};

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
