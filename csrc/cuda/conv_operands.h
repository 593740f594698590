// The operands of the three passes: which chunk of global memory belongs at which place of a stage.
//
// "Pixels" are rows of an image, gathered for one tap of the filter; an operand is deep or wide as conv_traits.h
// says. Each thread copies kChunksPerThread chunks of a stage, always at the same places, and remembers for every stage
// in flight which of them are real: what is not, padding and tails, is zero and stays so.
#pragma once

#include "conv_prologue.h"

namespace fused_resnet {
namespace conv {

// The image that an operand is gathered from: its sizes, channels in all and of a group.
struct SourceImage {
  int height, width, channels, group_channels;
};

// Where a row of the product lies: its image's first source pixel, and the source of the first tap.
struct PixelRow {
  int image, h, w;
};

__device__ __forceinline__ SourceImage source_image(const ConvGeometry& g) {
  return {g.height, g.width, g.channels, g.group_channels};
}

// A row without sources.
__device__ __forceinline__ PixelRow no_pixel() {
  return {0, -(1 << 30), 0};
}

// The output pixel of forward and wgrad; none from `end` on.
__device__ __forceinline__ PixelRow pixel_row(const ConvGeometry& g, int pixel, int end) {
  if (pixel >= end) return no_pixel();
  const int w = pixel % g.out_width, line = pixel / g.out_width, h = line % g.out_height, n = line / g.out_height;
  return {n * g.height * g.width, h * g.stride_h - g.pad_h, w * g.stride_w - g.pad_w};
}

// The pixel that lies so far down and right of the row's own, -1 where there is none.
__device__ __forceinline__ int source_pixel(const SourceImage& image, const PixelRow& row, int down, int right) {
  const int h = row.h + down, w = row.w + right;
  const bool inside = unsigned(h) < unsigned(image.height) && unsigned(w) < unsigned(image.width);
  return inside ? row.image + h * image.width + w : -1;
}

// Position in the sum over taps and channels of forward and dgrad, kDepth channels a step. r and s count the taps that
// are walked; `tap` is the filter's own number of this one.
struct TapWalk {
  int taps_w;              // of a row
  int tap_step, row_step;  // from one tap of a row to the next, and from its last to the next row's first
  int tap, r = 0, s = 0, channel = 0;

  __device__ __forceinline__ TapWalk(int row_taps, int step, int to_next_row, int first)
      : taps_w(row_taps), tap_step(step), row_step(to_next_row), tap(first) {}

  __device__ __forceinline__ void advance(int depth, int channels) {
    channel += depth;
    if (channel < channels) return;
    channel = 0;
    if (++s < taps_w) {
      tap += tap_step;
    } else {
      s = 0, ++r, tap += row_step;
    }
  }
};

// The channel of the step after `channel`'s.
__device__ __forceinline__ int next_channel(int channel, int depth, int channels) {
  return channel + depth < channels ? channel + depth : 0;
}

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
template <class Traits>
struct DeepPixels {
  using T = typename Traits::T;
  using Chunks = DeepChunks<Traits>;

  const SourceImage image;
  const int first_channel;
  PixelRow rows[Traits::kChunksPerThread];
  RealChunks real;

  // `row_of(i)` is the PixelRow of the tile's row i.
  template <class RowOf>
  __device__ __forceinline__ DeepPixels(const SourceImage& source, int group, const RowOf& row_of)
      : image(source), first_channel(group * source.group_channels) {
#pragma unroll
    for (int i = 0; i < Traits::kChunksPerThread; ++i) rows[i] = row_of(Chunks::row(i));
  }

  // Into `first` the chunks of x at a tap and from a channel on, and into `second`, unless it is null, those of y,
  // which has the same shape.
  __device__ __forceinline__ void fetch(int down, int right, int from, int stage, const T* x, unsigned char* first,
                                        const T* y, unsigned char* second) {
    const int channel = from + Chunks::column(), exist = valid_elements<Traits>(channel, image.group_channels);
    unsigned chunks = 0;
#pragma unroll
    for (int i = 0; i < Traits::kChunksPerThread; ++i) {
      const int pixel = source_pixel(image, rows[i], down, right), valid = pixel < 0 ? 0 : exist;
      const int64_t offset = int64_t(pixel) * image.channels + first_channel + channel;
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

  // `from` is the first channel of the sum.
  static __device__ __forceinline__ void fetch(const ConvGeometry& g, int tap, int from, const T* weight, int group,
                                               int first_column, unsigned char* operand) {
    const int first_k = deep ? first_column : from;
    const int channel = (deep ? from : first_column) + Chunks::column();
    const int exist = valid_elements<Traits>(channel, g.group_channels);
#pragma unroll
    for (int i = 0; i < Traits::kChunksPerThread; ++i) {
      const int k = first_k + Chunks::row(i), valid = k < g.group_out_channels ? exist : 0;
      const int64_t row = int64_t(group * g.group_out_channels + k) * g.kernel_h * g.kernel_w + tap;
      fetch_chunk<Traits>(Chunks::at(operand, kPitch, i), weight, row * g.group_channels + channel, valid);
    }
  }
};

}  // namespace conv
}  // namespace fused_resnet
