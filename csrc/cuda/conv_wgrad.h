// g_weight = wgrad(act(norm(x)), g) as a matrix product for each tap: rows are output channels, columns input channels,
// the depth is output pixels. Both operands are made as they arrive, g of g_y and y, u of x. The pixels are split
// between blocks by their number alone, and the finishing launch adds the splits up in order: the same bits everywhere.
#pragma once

#include "conv_pipeline.h"

namespace fused_resnet {
namespace conv {

struct WgradPlace {
  int first_row, first_column, group, r, s, first_pixel, end_pixel, split;
};

template <class Traits>
__device__ __forceinline__ WgradPlace wgrad_place(const ConvWgradParams& p) {
  const ConvGeometry& g = p.geometry;
  int index = blockIdx.x;
  const auto next = [&](int count) {
    const int i = index % count;
    index /= count;
    return i;
  };
  WgradPlace place;
  place.first_column = next((g.group_channels + Traits::kColumns - 1) / Traits::kColumns) * Traits::kColumns;
  place.first_row = next((g.group_out_channels + Traits::kRows - 1) / Traits::kRows) * Traits::kRows;
  place.s = next(g.kernel_w);
  place.r = next(g.kernel_h);
  place.group = next(g.groups);
  place.split = index;
  place.first_pixel = place.split * p.split_pixels;
  place.end_pixel = least(place.first_pixel + p.split_pixels, g.out_pixels);
  return place;
}

template <class Traits>
struct WgradOperands {
  using T = typename Traits::T;
  using ChunksG = WideChunksM<Traits>;
  using ChunksX = WideChunksN<Traits>;
  static constexpr bool kDeepA = false, kDeepB = false;
  static constexpr int kOffsetA = 0, kOffsetY = Traits::kDepth * Traits::kWidePitchM, kOffsetB = 2 * kOffsetY;
  static constexpr int kStageBytes = kOffsetB + Traits::kDepth * Traits::kWidePitchN;

  const ConvWgradParams& p;
  const WgradPlace place;
  const int g_channel, x_channel, g_valid, x_valid;  // of this thread's chunks, the same in every step
  int pixel;                                         // the first of the stage to be fetched
  RealChunks real_g, real_x;

  __device__ __forceinline__ WgradOperands(const ConvWgradParams& params, const WgradPlace& tile)
      : p(params),
        place(tile),
        g_channel(tile.group * params.geometry.group_out_channels + tile.first_row + ChunksG::column()),
        x_channel(tile.group * params.geometry.group_channels + tile.first_column + ChunksX::column()),
        g_valid(valid_elements<Traits>(tile.first_row + ChunksG::column(), params.geometry.group_out_channels)),
        x_valid(valid_elements<Traits>(tile.first_column + ChunksX::column(), params.geometry.group_channels)),
        pixel(tile.first_pixel) {}

  __device__ __forceinline__ void fetch(unsigned char* at, int stage) {
    const ConvGeometry& g = p.geometry;
    const bool statistics = p.gradient.g_mean != nullptr;
    unsigned chunks_g = 0, chunks_x = 0;
#pragma unroll
    for (int i = 0; i < Traits::kChunksPerThread; ++i) {
      const int out_pixel = pixel + ChunksG::row(i), valid = out_pixel < place.end_pixel ? g_valid : 0;
      const int64_t offset = int64_t(out_pixel) * g.out_channels + g_channel;
      fetch_chunk<Traits>(ChunksG::at(at + kOffsetA, Traits::kWidePitchM, i), static_cast<const T*>(p.g_y), offset,
                          valid);
      if (statistics) {
        fetch_chunk<Traits>(ChunksG::at(at + kOffsetY, Traits::kWidePitchM, i), static_cast<const T*>(p.y), offset,
                            valid);
      }
      chunks_g |= unsigned(valid > 0) << i;
    }
#pragma unroll
    for (int i = 0; i < Traits::kChunksPerThread; ++i) {
      const PixelRow row = pixel_row(g, pixel + ChunksX::row(i), place.end_pixel);
      const int source = source_pixel(source_image(g), row, place.r * g.dilation_h, place.s * g.dilation_w);
      const int valid = source < 0 ? 0 : x_valid;
      fetch_chunk<Traits>(ChunksX::at(at + kOffsetB, Traits::kWidePitchN, i), static_cast<const T*>(p.x),
                          int64_t(source) * g.channels + x_channel, valid);
      chunks_x |= unsigned(valid > 0) << i;
    }
    real_g.set(stage, chunks_g);
    real_x.set(stage, chunks_x);
    pixel += Traits::kDepth;
  }

  __device__ __forceinline__ void transform(unsigned char* at, int stage) {
    ChannelTerms<Traits::kChunk> terms;
    if (p.gradient.g_mean) {
      load_gradient<Traits>(p.gradient, g_channel, g_valid, terms);
#pragma unroll
      for (int i = 0; i < Traits::kChunksPerThread; ++i) {
        gradient_chunk<Traits>(terms, real_g.get(stage, i) ? g_valid : 0,
                               ChunksG::at(at + kOffsetA, Traits::kWidePitchM, i),
                               ChunksG::at(at + kOffsetY, Traits::kWidePitchM, i));
      }
    }
    if (is_needed(p.prologue)) {
      load_norm<Traits>(p.prologue, x_channel, x_valid, terms);
#pragma unroll
      for (int i = 0; i < Traits::kChunksPerThread; ++i) {
        norm_act_chunk<Traits>(p.prologue, terms, real_x.get(stage, i) ? x_valid : 0,
                               ChunksX::at(at + kOffsetB, Traits::kWidePitchN, i));
      }
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) conv_wgrad_kernel(ConvWgradParams p) {
  DYNAMIC_SHARED(unsigned char, shared);
  const ConvGeometry& g = p.geometry;
  const WgradPlace place = wgrad_place<Traits>(p);
  WgradOperands<Traits> operands(p, place);
  Product<Traits> product;
  const int steps = (place.end_pixel - place.first_pixel + Traits::kDepth - 1) / Traits::kDepth;
  multiply<Traits>(operands, steps, shared, product);
  const float* const tile = finish_tile<Traits>(product, shared);

  constexpr int kPerRow = Traits::kColumns / 4, kRowStep = Traits::kThreads / kPerRow;
  const int column = threadIdx.x % kPerRow * 4, valid = g.group_channels - place.first_column - column;
  if (valid <= 0) return;
  const int taps = g.kernel_h * g.kernel_w, tap = place.r * g.kernel_w + place.s;
  for (int row = threadIdx.x / kPerRow; row < Traits::kRows; row += kRowStep) {
    if (place.first_row + row >= g.group_out_channels) break;
    const int64_t k =
        int64_t(place.split) * g.out_channels + place.group * g.group_out_channels + place.first_row + row;
    float* const out = p.partial + (k * taps + tap) * g.group_channels + place.first_column + column;
    float v[4];
    load_floats(tile + row * Traits::kTilePitch + column, v);
    if constexpr (Traits::kVector) {
      store_floats(out, v);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < valid) out[i] = v[i];
      }
    }
  }
}

}  // namespace conv
}  // namespace fused_resnet
