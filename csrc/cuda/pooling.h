// Windows of a max pooling along one axis, and how threads walk over its images.
#pragma once

#include "dispatch.h"

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

// Elements before pixel `at` of image `n`, of `pixels`, in this thread's column; of an image that need not be the
// walk's own.
template <class Walk>
__device__ __forceinline__ int64_t offset_of_pixel(const Walk& walk, int64_t n, int64_t pixels, int64_t at) {
  static_assert(Walk::kChannelsLast || Walk::kLanes == 1);
  if constexpr (Walk::kChannelsLast) return ((n * pixels + at) * walk.columns + walk.column()) * Walk::kLanes;
  return (n * walk.columns + walk.column()) * pixels + at;
}

inline ChannelView image_view(int64_t batch, int64_t pixels, int64_t channels, bool channels_last) {
  return channels_last ? ChannelView{batch * pixels, channels, 1} : ChannelView{batch, channels, pixels};
}

inline ChannelView input_view(const PoolShape& s, bool channels_last) {
  return image_view(s.batch, s.height * s.width, s.channels, channels_last);
}

inline ChannelView output_view(const PoolShape& s, bool channels_last) {
  return image_view(s.batch, s.out_height * s.out_width, s.channels, channels_last);
}

// Calls f(Columns) as visit_columns does, but a contiguous image is walked by single pixels: neighbours in an image do
// not share their windows.
template <class T, class F>
cudaError_t visit_pixels(const ChannelView& view, bool channels_last, bool aligned, const F& f) {
  if (!channels_last) return f(Columns<1, false>(view));
  if constexpr (!std::is_same_v<T, double>) {
    if (aligned && fits_packs<T>(view)) return f(Columns<kFullLanes<T>, true>(view));
  }
  return f(Columns<1, true>(view));
}

}  // namespace fused_resnet
