// The transforms of Winograd's minimal filtering (Lavin and Gray 2016, section 4), in one dimension; both_ways applies
// them along both:
//
//   y = A' [(G w G') . (B' d B)] A                            d a tile of inputs, y one of outputs
//   g_w = G' [sum over tiles of (A g_y A') . (B' d B)] G      its derivative
//
// winograd_forms.h makes convolutions of them.
#pragma once

#include "conv.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// F(m, 3): m outputs of three taps from m + 2 inputs, with the interpolation points 0, 1, -1 (2, -2) and infinity.
template <int m, class S>
struct Winograd;

template <class S>
struct Winograd<2, S> {
  template <class V>
  static void input(const V* d, V* o) {  // B' d
    o[0] = d[0] - d[2];
    o[1] = d[1] + d[2];
    o[2] = d[2] - d[1];
    o[3] = d[1] - d[3];
  }
  template <class V>
  static void filter(const V* w, V* o) {  // G w
    const V even = (w[0] + w[2]) * S(0.5), odd = w[1] * S(0.5);
    o[0] = w[0];
    o[1] = even + odd;
    o[2] = even - odd;
    o[3] = w[2];
  }
  template <class V>
  static void output(const V* t, V* y) {  // A' t
    y[0] = t[0] + t[1] + t[2];
    y[1] = t[1] - t[2] - t[3];
  }
  template <class V>
  static void gradient(const V* g, V* o) {  // A g
    o[0] = g[0];
    o[1] = g[0] + g[1];
    o[2] = g[0] - g[1];
    o[3] = -g[1];
  }
  template <class V>
  static void filter_gradient(const V* t, V* w) {  // G' t
    const V even = (t[1] + t[2]) * S(0.5);
    w[0] = t[0] + even;
    w[1] = (t[1] - t[2]) * S(0.5);
    w[2] = even + t[3];
  }
};

template <class S>
struct Winograd<4, S> {
  template <class V>
  static void input(const V* d, V* o) {
    const V a = d[4] - d[2] * S(4), b = d[3] - d[1] * S(4), c = d[4] - d[2], e = (d[3] - d[1]) * S(2);
    o[0] = d[0] * S(4) - d[2] * S(5) + d[4];
    o[1] = a + b;
    o[2] = a - b;
    o[3] = c + e;
    o[4] = c - e;
    o[5] = d[1] * S(4) - d[3] * S(5) + d[5];
  }
  template <class V>
  static void filter(const V* w, V* o) {
    const V even = (w[0] + w[2]) * S(-1.0 / 6), odd = w[1] * S(1.0 / 6);
    const V far_even = w[0] * S(1.0 / 24) + w[2] * S(1.0 / 6), far_odd = w[1] * S(1.0 / 12);
    o[0] = w[0] * S(0.25);
    o[1] = even - odd;
    o[2] = even + odd;
    o[3] = far_even + far_odd;
    o[4] = far_even - far_odd;
    o[5] = w[2];
  }
  template <class V>
  static void output(const V* t, V* y) {
    const V a = t[1] + t[2], b = t[1] - t[2], c = t[3] + t[4], d = t[3] - t[4];
    y[0] = t[0] + a + c;
    y[1] = b + d * S(2);
    y[2] = a + c * S(4);
    y[3] = b + d * S(8) + t[5];
  }
  template <class V>
  static void gradient(const V* g, V* o) {
    const V even = g[0] + g[2], odd = g[1] + g[3], far_even = g[0] + g[2] * S(4), far_odd = g[1] * S(2) + g[3] * S(8);
    o[0] = g[0];
    o[1] = even + odd;
    o[2] = even - odd;
    o[3] = far_even + far_odd;
    o[4] = far_even - far_odd;
    o[5] = g[3];
  }
  template <class V>
  static void filter_gradient(const V* t, V* w) {
    const V a = t[1] + t[2], b = t[2] - t[1], c = t[3] + t[4], d = t[3] - t[4];
    w[0] = t[0] * S(0.25) - a * S(1.0 / 6) + c * S(1.0 / 24);
    w[1] = b * S(1.0 / 6) + d * S(1.0 / 12);
    w[2] = (c - a) * S(1.0 / 6) + t[5];
  }
};

// F(4, 2): four outputs of two taps from five inputs, with the interpolation points 0, 1, -1, 2 and infinity. Where the
// second tap is zero, so is the filter at infinity: a single tap needs four points and four inputs.
template <int kTaps, class S>
struct WinogradPhase {
  static_assert(kTaps == 1 || kTaps == 2);
  static constexpr int kPoints = 3 + kTaps;  // and inputs

  template <class V>
  static void input(const V* d, V* o) {
    const V a = d[3] - d[1], b = (d[0] - d[2]) * S(2);
    o[0] = a + b;
    o[1] = a - d[1] - d[2];
    o[2] = d[1] * S(2) - d[2] * S(3) + d[3];
    o[3] = a;
    if constexpr (kTaps == 2) o[4] = d[4] - d[2] - a * S(2);
  }
  template <class V>
  static void filter(const V* w, V* o) {
    o[0] = w[0] * S(0.5);
    if constexpr (kTaps == 1) {
      o[1] = w[0] * S(-0.5);
      o[2] = w[0] * S(-1.0 / 6);
      o[3] = w[0] * S(1.0 / 6);
    } else {
      o[1] = (w[0] + w[1]) * S(-0.5);
      o[2] = (w[1] - w[0]) * S(1.0 / 6);
      o[3] = w[0] * S(1.0 / 6) + w[1] * S(1.0 / 3);
      o[4] = w[1];
    }
  }
  template <class V>
  static void output(const V* t, V* y) {
    const V a = t[1] + t[2], b = t[1] - t[2];
    y[0] = t[0] + a + t[3];
    y[1] = b + t[3] * S(2);
    y[2] = a + t[3] * S(4);
    y[3] = b + t[3] * S(8);
    if constexpr (kTaps == 2) y[3] += t[4];
  }
  template <class V>
  static void gradient(const V* g, V* o) {
    const V even = g[0] + g[2], odd = g[1] + g[3];
    o[0] = g[0];
    o[1] = even + odd;
    o[2] = even - odd;
    o[3] = g[0] + g[2] * S(4) + (g[1] + g[3] * S(4)) * S(2);
    if constexpr (kTaps == 2) o[4] = g[3];
  }
  template <class V>
  static void filter_gradient(const V* t, V* w) {
    w[0] = (t[0] - t[1]) * S(0.5) + (t[3] - t[2]) * S(1.0 / 6);
    if constexpr (kTaps == 2) w[1] = t[4] - t[1] * S(0.5) + t[2] * S(1.0 / 6) + t[3] * S(1.0 / 3);
  }
};

// out = F in E' for a transform F of columns, from kInH to kOutH values, and E of rows, from kInW to kOutW; get(i, j)
// reads an element of `in`, put(i, j, v) takes one of `out`.
template <class V, int kInH, int kOutH, int kInW, int kOutW, class Get, class Columns, class TransformRows, class Put>
inline void both_ways(const Get& get, const Columns& columns, const TransformRows& rows, const Put& put) {
  V half[kOutH][kInW];
#pragma GCC unroll 8
  for (int j = 0; j < kInW; ++j) {
    V column[kInH], transformed[kOutH];
#pragma GCC unroll 8
    for (int i = 0; i < kInH; ++i) column[i] = get(i, j);
    columns(column, transformed);
#pragma GCC unroll 8
    for (int i = 0; i < kOutH; ++i) half[i][j] = transformed[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < kOutH; ++i) {
    V row[kOutW];
    rows(half[i], row);
#pragma GCC unroll 8
    for (int j = 0; j < kOutW; ++j) put(i, j, row[j]);
  }
}

// The same with one transform for both.
template <class V, int kIn, int kOut, class Get, class Transform, class Put>
inline void both_ways(const Get& get, const Transform& transform, const Put& put) {
  both_ways<V, kIn, kOut, kIn, kOut>(get, transform, transform, put);
}

// A strip of the rows that one row of tiles reads, zero outside the image: [rows, width, channels], the channels padded
// with zeros to whole registers.
template <class S>
class TileStrip {
 public:
  // Rows and columns of tiles overlap: row t begins at t * step - pad.
  TileStrip(int64_t rows, int64_t columns, int64_t channels, int64_t in_height, int64_t in_width, int64_t pad_h,
            int64_t pad_w)
      : rows_(rows),
        columns_(columns),
        channels_(round_up(channels, kLanes<S>)),
        real_channels_(channels),
        in_height_(in_height),
        in_width_(in_width),
        pad_h_(pad_h),
        pad_w_(pad_w) {}

  int64_t size() const { return rows_ * columns_ * channels_; }
  int64_t channels() const { return channels_; }
  int64_t row_stride() const { return columns_ * channels_; }
  const S* column(const S* data, int64_t x) const { return data + x * channels_; }

  // Once for each piece of memory: padding on either side stays zero.
  void clear(S* data) const { std::fill_n(data, size(), S(0)); }

  // Reads the rows from `top` on (before padding) of an image.
  void fill(int64_t image, int64_t top, const Source<S>& source, S* data) const {
    for (int64_t i = 0; i < rows_; ++i, data += row_stride()) {
      const int64_t y = top - pad_h_ + i;
      if (y < 0 || y >= in_height_)
        std::fill_n(data, row_stride(), S(0));
      else
        source.read((image * in_height_ + y) * in_width_, 1, std::min(in_width_, columns_ - pad_w_),
                    {data + pad_w_ * channels_, channels_, real_channels_, 0});
    }
  }

  // The memory that filling it will read, but for what the strip above has read.
  void announce(int64_t image, int64_t top, int64_t new_rows, const Source<S>& source, Ahead& ahead) const {
    const int64_t end = std::min(top - pad_h_ + rows_, in_height_), begin = std::max<int64_t>(end - new_rows, 0);
    if (begin < end) source.announce((image * in_height_ + begin) * in_width_, (end - begin) * in_width_, ahead);
  }

 private:
  int64_t rows_, columns_, channels_, real_channels_, in_height_, in_width_, pad_h_, pad_w_;
};

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
