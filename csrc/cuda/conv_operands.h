// The operands of the three passes: which chunk of global memory belongs at which place of a stage.
//
// "Pixels" are rows of an image, gathered for one tap of the filter; an operand is deep or wide as conv_traits.h
// says. Each thread copies kChunksPerThread chunks of a stage, always at the same places, and remembers for every stage
// in flight which of them are real: what is not, padding and tails, is zero and stays so.
#pragma once

#include "conv_prologue.h"

namespace fused_resnet {
namespace conv {

// Where a row of the product lies: its image's first source pixel, and the source of tap (0, 0).
struct PixelRow {
  int image, h, w;
};

// The output pixel of forward and wgrad, or (transposed) the input pixel of dgrad; beyond `end` one without sources.
template <bool transposed>
__device__ __forceinline__ PixelRow pixel_row(const ConvGeometry& g, int pixel, int end) {
  if (pixel >= end) return {0, -(1 << 30), 0};
  const int width = transposed ? g.width : g.out_width, height = transposed ? g.height : g.out_height;
  const int w = pixel % width, line = pixel / width, h = line % height, n = line / height;
  if constexpr (transposed) {
    return {n * g.out_height * g.out_width, h + g.pad_h, w + g.pad_w};
  } else {
    return {n * g.height * g.width, h * g.stride_h - g.pad_h, w * g.stride_w - g.pad_w};
  }
}

// The pixel that tap (r, s) reads, -1 where there is none.
template <bool transposed>
__device__ __forceinline__ int source_pixel(const ConvGeometry& g, const PixelRow& row, int r, int s) {
  if constexpr (transposed) {
    int h = row.h - r * g.dilation_h, w = row.w - s * g.dilation_w;
    if (h < 0 || w < 0) return -1;
    if (g.stride_h != 1) {
      if (h % g.stride_h) return -1;
      h /= g.stride_h;
    }
    if (g.stride_w != 1) {
      if (w % g.stride_w) return -1;
      w /= g.stride_w;
    }
    return h < g.out_height && w < g.out_width ? row.image + h * g.out_width + w : -1;
  } else {
    const int h = row.h + r * g.dilation_h, w = row.w + s * g.dilation_w;
    const bool inside = unsigned(h) < unsigned(g.height) && unsigned(w) < unsigned(g.width);
    return inside ? row.image + h * g.width + w : -1;
  }
}

// Position in the sum over taps and channels of forward and dgrad, kDepth channels a step.
struct TapWalk {
  int r = 0, s = 0, tap = 0, channel = 0;

  __device__ __forceinline__ void advance(int depth, int channels, int kernel_w) {
    channel += depth;
    if (channel < channels) return;
    channel = 0, ++tap;
    if (++s == kernel_w) s = 0, ++r;
  }
};

// One thread's chunks of an operand: chunk i is `row(i)`, and elements [column(), column() + kChunk) of it.
template <class Traits, int row_bytes>
struct ThreadChunks {
  static constexpr int kPerRow = row_bytes / 16, kRowStep = Traits::kThreads / kPerRow;
  static_assert(Traits::kThreads % kPerRow == 0);

  static __device__ __forceinline__ int row(int i) { return threadIdx.x / kPerRow + i * kRowStep; }
  static __device__ __forceinline__ int column() { return threadIdx.x % kPerRow * Traits::kChunk; }
  static __device__ __forceinline__ uint4* at(unsigned char* operand, int pitch, int i) {
    return reinterpret_cast<uint4*>(operand + row(i) * pitch + threadIdx.x % kPerRow * 16);
  }
};

template <class Traits>
using DeepChunks = ThreadChunks<Traits, Traits::kDepthBytes>;
template <class Traits>
using WideChunksM = ThreadChunks<Traits, Traits::kRows * sizeof(typename Traits::T)>;
template <class Traits>
using WideChunksN = ThreadChunks<Traits, Traits::kColumns * sizeof(typename Traits::T)>;

// Which chunks of the stages in flight are real, two bits a stage.
struct RealChunks {
  unsigned bits = 0;

  __device__ __forceinline__ void set(int stage, unsigned chunks) {
    bits = (bits & ~(3u << 2 * stage)) | chunks << 2 * stage;
  }
  __device__ __forceinline__ bool get(int stage, int i) const { return bits >> (2 * stage + i) & 1; }
};

// Starts the copy of a chunk, of which the first `valid` elements exist. Where whole chunks can not be relied on, the
// elements are read one by one and stored at once.
template <class Traits>
__device__ __forceinline__ void fetch_chunk(uint4* shared, const typename Traits::T* tensor, int64_t offset,
                                            int valid) {
  if constexpr (Traits::kVector) {
    ptx::cp_async<16>(shared, tensor + (valid > 0 ? offset : 0), valid > 0 ? 16 : 0);
  } else {
    *shared = load_chunk<Traits>(tensor + (valid > 0 ? offset : 0), valid);
  }
}

// Elements of a chunk at `channel` that exist.
template <class Traits>
__device__ __forceinline__ int valid_elements(int channel, int channels) {
  const int left = channels - channel;
  return left < Traits::kChunk ? left : Traits::kChunk;
}

// Rows of pixels, deep: kRows pixels by kDepth channels of one tap.
template <class Traits, bool transposed>
struct DeepPixels {
  using T = typename Traits::T;
  using Chunks = DeepChunks<Traits>;

  const ConvGeometry& g;
  int channels, group_channels, first_channel;  // of the source: per pixel, per group, of this group
  PixelRow rows[Traits::kChunksPerThread];
  RealChunks real;

  __device__ __forceinline__ DeepPixels(const ConvGeometry& geometry, int group, int first_row) : g(geometry) {
    channels = transposed ? g.out_channels : g.channels;
    group_channels = transposed ? g.group_out_channels : g.group_channels;
    first_channel = group * group_channels;
#pragma unroll
    for (int i = 0; i < Traits::kChunksPerThread; ++i) {
      rows[i] = pixel_row<transposed>(g, first_row + Chunks::row(i), transposed ? g.in_pixels : g.out_pixels);
    }
  }

  // Into `first` the chunks of x, and into `second`, unless it is null, those of y, which has the same shape.
  __device__ __forceinline__ void fetch(const TapWalk& walk, int stage, const T* x, unsigned char* first, const T* y,
                                        unsigned char* second) {
    const int channel = walk.channel + Chunks::column();
    const int exist = valid_elements<Traits>(channel, group_channels);
    unsigned chunks = 0;
#pragma unroll
    for (int i = 0; i < Traits::kChunksPerThread; ++i) {
      const int pixel = source_pixel<transposed>(g, rows[i], walk.r, walk.s);
      const int valid = pixel < 0 ? 0 : exist;
      const int64_t offset = int64_t(pixel) * channels + first_channel + channel;
      fetch_chunk<Traits>(Chunks::at(first, Traits::kDeepPitch, i), x, offset, valid);
      if (second) fetch_chunk<Traits>(Chunks::at(second, Traits::kDeepPitch, i), y, offset, valid);
      chunks |= unsigned(valid > 0) << i;
    }
    real.set(stage, chunks);
  }
};

// A filter [K, R, S, C / groups] at one tap: deep, kColumns output channels by kDepth channels; wide, kDepth output
// channels by kColumns channels.
template <class Traits, bool deep>
struct Filter {
  using T = typename Traits::T;
  using Chunks = std::conditional_t<deep, DeepChunks<Traits>, WideChunksN<Traits>>;
  static constexpr int kPitch = deep ? Traits::kDeepPitch : Traits::kWidePitchN;

  static __device__ __forceinline__ void fetch(const ConvGeometry& g, const TapWalk& walk, const T* weight, int group,
                                               int first_column, unsigned char* operand) {
    const int first_k = deep ? first_column : walk.channel;
    const int channel = (deep ? walk.channel : first_column) + Chunks::column();
    const int exist = valid_elements<Traits>(channel, g.group_channels);
#pragma unroll
    for (int i = 0; i < Traits::kChunksPerThread; ++i) {
      const int k = first_k + Chunks::row(i), valid = k < g.group_out_channels ? exist : 0;
      const int64_t row = int64_t(group * g.group_out_channels + k) * g.kernel_h * g.kernel_w + walk.tap;
      fetch_chunk<Traits>(Chunks::at(operand, kPitch, i), weight, row * g.group_channels + channel, valid);
    }
  }
};

}  // namespace conv
}  // namespace fused_resnet
