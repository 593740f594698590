// What a convolution reads: act(norm(x)), or the gradient of its output with the statistics' share.
#pragma once

#include <cstring>
#include <functional>

#include "batch_norm.h"
#include "conv.h"
#include "dispatch.h"
#include "kernels.h"
#include "tiles.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// A source of value(channel)(tile) for each register of a pixel's channels, which reads one tensor, or two.
// value(channel) holds what belongs to the channels, for four pixels at a time.
template <class T, class Value>
class MappedSource final : public Source<Accumulate<T>> {
 public:
  using S = Accumulate<T>;

  MappedSource(int64_t channels, const Value& value, const T* first, const T* second = nullptr)
      : channels_(channels), value_(value), first_(first), second_(second) {}

  void read(int64_t pixel, int64_t step, int64_t count, const Rows<S>& out) const override {
    int64_t i = 0;
    for (; channels_ < 96 && i + 4 <= count; i += 4)
      read_pixels<4>((pixel + i * step) * channels_, step * channels_, out.from_row(i));
    for (; i < count; ++i) read_pixels<1>((pixel + i * step) * channels_, step * channels_, out.from_row(i));
  }

  void prefetch(int64_t pixel, int64_t step, int64_t count) const override {
    for (const T* tensor : {first_, second_})
      for (int64_t i = 0; tensor && i < count; ++i)
        fused_resnet::prefetch(tensor + (pixel + i * step) * channels_, channels_);
  }

  void announce(int64_t pixel, int64_t count, Ahead& ahead) const override {
    for (const T* tensor : {first_, second_})
      if (tensor) ahead.add(tensor + pixel * channels_, count * channels_ * static_cast<int64_t>(sizeof(T)));
  }

 private:
  template <int kCount>
  void read_pixels(int64_t offset, int64_t stride, const Rows<S>& out) const {
    constexpr int N = kLanes<S>;
    S* chunk = out.data;
    for (int64_t first = 0; first < channels_; first += out.chunk, chunk += out.chunk_stride) {
      const int64_t n = std::min(out.chunk, channels_ - first);
      int64_t c = 0;
      for (; c + N <= n; c += N)
        read_group(TileGroup<true, kCount>{{offset + first + c, first + c, N}, stride}, chunk + c, out.row_stride);
      for (int i = 0; c < n && i < kCount; ++i) {
        const Tile<false> tail{offset + i * stride + first + c, first + c, static_cast<int>(n - c)};
        read_group(TileGroup<false, 1>{tail, stride}, chunk + i * out.row_stride + c, out.row_stride);
      }
    }
  }

  template <class Group>
  void read_group(const Group& group, S* out, int64_t row_stride) const {
    const auto value = value_(group.channel());
    group.each([&](const auto& tile) { store(out + tile.row * row_stride, value(tile), tile.lanes); });
  }

  int64_t channels_;
  Value value_;
  const T *first_, *second_;
};

// A source of pixels as they are.
template <class S>
class PlainSource final : public Source<S> {
 public:
  PlainSource(int64_t channels, const S* x) : channels_(channels), x_(x) {}

  void read(int64_t pixel, int64_t step, int64_t count, const Rows<S>& out) const override {
    const S* from = x_ + pixel * channels_;
    if (step == 1 && out.row_stride == channels_ && out.chunk >= channels_) {
      std::memcpy(out.data, from, count * channels_ * sizeof(S));
      return;
    }
    const auto value = [x = x_](int64_t) { return [x](const auto& tile) { return tile.load(x); }; };
    MappedSource<S, decltype(value)>(channels_, value, x_).read(pixel, step, count, out);
  }

  void prefetch(int64_t pixel, int64_t step, int64_t count) const override {
    for (int64_t i = 0; i < count; ++i) fused_resnet::prefetch(x_ + (pixel + i * step) * channels_, channels_);
  }

  void announce(int64_t pixel, int64_t count, Ahead& ahead) const override {
    ahead.add(x_ + pixel * channels_, count * channels_ * static_cast<int64_t>(sizeof(S)));
  }

 private:
  int64_t channels_;
  const S* x_;
};

// What is done with a source. Not a template's argument, which would make every source again for every use.
template <class S>
using SourceUse = std::function<void(const Source<S>&)>;

// Calls f with the source of act(norm(x)), pixels of `channels` each.
template <class T>
void with_activated(const void* x, int64_t channels, const BatchNormArgs& bn, const ActivationArgs& activation,
                    const SourceUse<Accumulate<T>>& f) {
  using S = Accumulate<T>;
  const auto* from = static_cast<const T*>(x);
  if constexpr (std::is_same_v<T, S>)
    if (!bn.mean && activation.kind == Activation::identity) return f(PlainSource<S>(channels, from));
  const Norm<S> norm(channels, bn);
  const S slope = static_cast<S>(activation.negative_slope);
  visit_activation(activation.kind, [&](auto kind) {
    const auto value = [&norm, from, slope](int64_t channel) {
      return [bn = norm.channels_from(channel), from, slope](const auto& tile) {
        return activate<decltype(kind)::value>(bn(tile.load(from)), slope);
      };
    };
    f(MappedSource<T, decltype(value)>(channels, value, from));
  });
}

// Calls f with the source of the gradient of `pixels` of `channels` each.
template <class T>
void with_gradient(const ConvGradient& g, int64_t pixels, int64_t channels, const SourceUse<Accumulate<T>>& f) {
  using S = Accumulate<T>;
  const auto *g_y = static_cast<const T*>(g.g_y), *y = static_cast<const T*>(g.y);
  if (!g.g_mean) {
    if constexpr (std::is_same_v<T, S>) {
      f(PlainSource<S>(channels, g_y));
    } else {
      const auto value = [g_y](int64_t) { return [g_y](const auto& tile) { return tile.load(g_y); }; };
      f(MappedSource<T, decltype(value)>(channels, value, g_y));
    }
    return;
  }
  const Norm<S> norm = statistics_gradient<S>(pixels, channels, g.y_mean, g.g_mean, g.g_var), bn(channels, g.bn);
  const auto value = [&norm, g_y, y](int64_t channel) {
    return [share = norm.channels_from(channel), g_y, y](const auto& tile) {
      return tile.load(g_y) + share(tile.load(y));
    };
  };
  const auto scaled = [&norm, &bn, g_y, y](int64_t channel) {
    return [share = norm.channels_from(channel), scale = bn.channels_from(channel).scale, g_y, y](const auto& tile) {
      return tile.load(g_y) * scale + share(tile.load(y));
    };
  };
  if (g.bn.mean)
    f(MappedSource<T, decltype(scaled)>(channels, scaled, g_y, y));
  else
    f(MappedSource<T, decltype(value)>(channels, value, g_y, y));
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
