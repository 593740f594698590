// The transforms of Winograd's minimal filtering (Lavin and Gray 2016, section 4), in one dimension; both_ways applies
// them along both:
//
//   y = A' [(G w G') . (B' d B)] A                            d a tile of inputs, y one of outputs
//   g_w = G' [sum over tiles of (A g_y A') . (B' d B)] G      its derivative
//
// winograd_forms.h makes convolutions of them.
#pragma once

#include "conv.h"
#include "winograd_transforms.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

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
