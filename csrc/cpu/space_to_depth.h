// A convolution of stride 2 as one of stride 1: two by two pixels of the image, its padding included, become one pixel
// of four times as many channels, ordered by column, row and channel, and a filter of R taps becomes one of (R + 1) /
// 2, the last of which is zero for the second row or column where R is odd.
#pragma once

#include <algorithm>

#include "conv.h"
#include "kernels.h"
#include "parallel.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// Whether this algorithm computes a convolution in that form.
inline bool is_space_to_depth(const ConvArgs& a) {
  return a.algorithm == ConvAlgorithm::winograd_stem;
}

// The convolution that is left: of stride 1 and without padding.
inline ConvShape space_to_depth(const ConvShape& s) {
  const int64_t taps_h = (s.kernel_h + 1) / 2, taps_w = (s.kernel_w + 1) / 2;
  return {s.batch,
          s.out_height + taps_h - 1,
          s.out_width + taps_w - 1,
          4 * s.channels,
          s.out_height,
          s.out_width,
          s.out_channels,
          taps_h,
          taps_w,
          1,
          1,
          0,
          0,
          1,
          1,
          1};
}

// The same with its filter [K, 4 C, taps, taps], dense.
inline ConvArgs space_to_depth(ConvArgs a) {
  a.shape = space_to_depth(a.shape);
  const int64_t taps = a.shape.kernel_h * a.shape.kernel_w;
  a.strides = {a.shape.channels * taps, taps, a.shape.kernel_w, 1};
  return a;
}

// Calls f(offset in the filter, offset in the one that is left) for each of the filter's numbers.
template <class F>
void each_tap_of_both(const ConvArgs& a, const F& f) {
  const FilterStrides &w = a.strides, folded = space_to_depth(a).strides;
  for (int64_t k = 0; k < a.shape.out_channels; ++k)
    for (int64_t c = 0; c < a.shape.channels; ++c)
      for (int64_t r = 0; r < a.shape.kernel_h; ++r)
        for (int64_t s = 0; s < a.shape.kernel_w; ++s)
          f(k * w.k + c * w.c + r * w.r + s * w.s, k * folded.k +
                                                       ((s % 2 * 2 + r % 2) * a.shape.channels + c) * folded.c +
                                                       r / 2 * folded.r + s / 2 * folded.s);
}

// Room for its filter, zero where the original has no tap.
template <class S>
class SpaceToDepthFilter {
 public:
  explicit SpaceToDepthFilter(const ConvArgs& a) : a_(a), data_(a.shape.out_channels * space_to_depth(a).strides.k) {}

  S* data() const { return data_.get(); }

  void read(const S* weight) const {
    each_tap_of_both(a_, [&](int64_t from, int64_t to) { data_.get()[to] = weight[from]; });
  }
  void write(S* weight) const {
    each_tap_of_both(a_, [&](int64_t to, int64_t from) { weight[to] = data_.get()[from]; });
  }

 private:
  ConvArgs a_;
  Scratch<S> data_;
};

// Its image.
template <class S>
class SpaceToDepthSource final : public Source<S> {
 public:
  SpaceToDepthSource(const ConvShape& shape, const Source<S>& source)
      : shape_(shape), width_(space_to_depth(shape).width), height_(space_to_depth(shape).height), source_(source) {}

  void read(int64_t pixel, int64_t, int64_t count, const Rows<S>& out) const override {
    const int64_t column = pixel % width_, row = pixel / width_ % height_, image = pixel / width_ / height_;
    const int64_t channels = shape_.channels;
    S* to = out.data;
    for (int64_t odd_x = 0; odd_x < 2; ++odd_x)
      for (int64_t odd_y = 0; odd_y < 2; ++odd_y, to += channels) {
        const int64_t y = 2 * row + odd_y - shape_.pad_h, x = 2 * column + odd_x - shape_.pad_w;
        const bool is_inside = 0 <= y && y < shape_.height;
        // Of `count` pixels those [begin, end) lie in the image.
        const int64_t begin = is_inside ? std::clamp<int64_t>((1 - x) / 2, 0, count) : count;
        const int64_t end = std::clamp<int64_t>((shape_.width - x + 1) / 2, begin, count);
        for (int64_t i = 0; i < begin; ++i) std::fill_n(to + i * out.row_stride, channels, S(0));
        for (int64_t i = end; i < count; ++i) std::fill_n(to + i * out.row_stride, channels, S(0));
        if (begin < end)
          source_.read((image * shape_.height + y) * shape_.width + x + 2 * begin, 2, end - begin,
                       {to + begin * out.row_stride, out.row_stride, channels, 0});
      }
  }

  void prefetch(int64_t pixel, int64_t, int64_t count) const override {
    for_rows(pixel, count, [&](int64_t first, int64_t pixels) { source_.prefetch(first, 1, pixels); });
  }

  void announce(int64_t pixel, int64_t count, Ahead& ahead) const override {
    for_rows(pixel, count, [&](int64_t first, int64_t pixels) { source_.announce(first, pixels, ahead); });
  }

 private:
  // Calls f(first pixel, pixels) with the rows of the image in which these pixels lie.
  template <class F>
  void for_rows(int64_t pixel, int64_t count, const F& f) const {
    const int64_t row = pixel / width_ % height_, image = pixel / width_ / height_;
    const int64_t rows = (pixel % width_ + count + width_ - 1) / width_;
    const int64_t top = std::clamp<int64_t>(2 * row - shape_.pad_h, 0, shape_.height);
    const int64_t bottom = std::clamp<int64_t>(2 * (row + rows) - shape_.pad_h, top, shape_.height);
    f((image * shape_.height + top) * shape_.width, (bottom - top) * shape_.width);
  }

  ConvShape shape_;
  int64_t width_, height_;  // of the image of four times as many channels
  const Source<S>& source_;
};

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
