// Windows of a max pooling along one axis, and the columns of a channels_last image.
#pragma once

#include "columns.h"

namespace fused_resnet {

struct AxisRange {
  int64_t begin, end;
};

// The part of window `out` inside the image, in places of the window; `origin`, its first place, may lie in the
// padding.
struct Window {
  int64_t origin, begin, end;

  __device__ __forceinline__ Window(int64_t out, int64_t stride, int64_t pad, int64_t kernel, int64_t size)
      : origin(out * stride - pad) {
    begin = origin < 0 ? -origin : 0;
    end = origin + kernel > size ? size - origin : kernel;
  }
};

// The outputs whose windows hold `position`.
__device__ __forceinline__ AxisRange covering(int64_t position, int64_t stride, int64_t pad, int64_t kernel,
                                              int64_t outputs) {
  const int64_t first = position + pad - kernel + 1, last = (position + pad) / stride + 1;
  return {first > 0 ? (first + stride - 1) / stride : 0, last < outputs ? last : outputs};
}

// Row `row` of [batch, height, width].
struct Pixel {
  int64_t n, h, w;

  __device__ __forceinline__ Pixel(int64_t row, int64_t height, int64_t width) {
    const int64_t line = row / width;
    w = row - line * width;
    n = line / height;
    h = line - n * height;
  }
};

inline ChannelView input_view(const PoolShape& s) {
  return {s.batch * s.height * s.width, s.channels, 1};
}

inline ChannelView output_view(const PoolShape& s) {
  return {s.batch * s.out_height * s.out_width, s.channels, 1};
}

// Calls f(Columns) over a channels_last image: see visit_columns.
template <class T, class F>
cudaError_t visit_channels_last(const ChannelView& view, bool aligned, const F& f) {
  if constexpr (!std::is_same_v<T, double>) {
    if (aligned && view.channels % kFullLanes<T> == 0) return f(Columns<kFullLanes<T>, true>(view));
  }
  return f(Columns<1, true>(view));
}

}  // namespace fused_resnet
