// y = conv(act(norm(x)), weight) + bias as an implicit matrix product: rows are output pixels, columns output channels,
// the depth is every tap's channels. In training the statistics of y leave with it; for inference the next batch norm,
// residual and activation are in the epilogue instead.
#pragma once

#include "conv_pipeline.h"

namespace fused_resnet {
namespace conv {

template <class Traits>
struct ForwardOperands {
  using T = typename Traits::T;
  static constexpr bool kDeepA = true, kDeepB = true;
  static constexpr int kOffsetA = 0, kOffsetB = Traits::kRows * Traits::kDeepPitch;
  static constexpr int kStageBytes = kOffsetB + Traits::kColumns * Traits::kDeepPitch;

  const ConvForwardParams& p;
  const TilePlace place;
  DeepPixels<Traits> pixels;
  TapWalk fetched;
  int arrived = 0;  // channel

  __device__ __forceinline__ ForwardOperands(const ConvForwardParams& params, const TilePlace& tile)
      : p(params),
        place(tile),
        pixels(source_image(params.geometry), tile.group,
               [&](int row) {
                 return pixel_row(params.geometry, tile.row_tile * Traits::kRows + row, params.geometry.out_pixels);
               }),
        fetched(params.geometry.kernel_w, 1, 1, 0) {}

  __device__ __forceinline__ void fetch(unsigned char* at, int stage) {
    const ConvGeometry& g = p.geometry;
    pixels.fetch(fetched.r * g.dilation_h, fetched.s * g.dilation_w, fetched.channel, stage, static_cast<const T*>(p.x),
                 at + kOffsetA, nullptr, nullptr);
    Filter<Traits, true>::fetch(g, fetched.tap, fetched.channel, static_cast<const T*>(p.weight), place.group,
                                place.first_column, at + kOffsetB);
    fetched.advance(Traits::kDepth, g.group_channels);
  }

  __device__ __forceinline__ void transform(unsigned char* at, int stage) {
    using Chunks = DeepChunks<Traits>;
    const ConvGeometry& g = p.geometry;
    if (is_needed(p.prologue)) {
      const int channel = arrived + Chunks::column();
      const int valid = valid_elements<Traits>(channel, g.group_channels);
      ChannelTerms<Traits::kChunk> terms;
      load_norm<Traits>(p.prologue, pixels.first_channel + channel, valid, terms);
#pragma unroll
      for (int i = 0; i < Traits::kChunksPerThread; ++i) {
        norm_act_chunk<Traits>(p.prologue, terms, pixels.real.get(stage, i) ? valid : 0,
                               Chunks::at(at + kOffsetA, Traits::kDeepPitch, i));
      }
    }
    arrived = next_channel(arrived, Traits::kDepth, g.group_channels);
  }
};

// Adds the bias, then norm, residual and activation where there are any, and stores. With statistics the tile is left
// as it was stored, rounded: they are those of y.
template <class Traits>
__device__ __forceinline__ void store_output(const ConvForwardParams& p, const TilePlace& place, float* tile) {
  using T = typename Traits::T;
  using Chunks = ThreadChunks<Traits, Traits::kColumns * sizeof(T)>;
  const ConvGeometry& g = p.geometry;
  const int first_row = place.row_tile * Traits::kRows;
  const int column = Chunks::column(),
            valid = valid_elements<Traits>(place.first_column + column, g.group_out_channels);
  const int channel = place.group * g.group_out_channels + place.first_column + column;
  float bias[Traits::kChunk];
  ChannelTerms<Traits::kChunk> terms;
  load_channels<Traits::kVector>(p.bias, channel, valid, 0.f, bias);
  load_norm<Traits>(p.epilogue, channel, valid, terms);
  if (valid <= 0) return;
  for (int row = Chunks::row(0); row < Traits::kRows && first_row + row < g.out_pixels; row += Chunks::kRowStep) {
    const int64_t offset = int64_t(first_row + row) * g.out_channels + channel;
    float* const at = tile + row * Traits::kTilePitch + column;
    float v[Traits::kChunk];
    load_floats(at, v);
#pragma unroll
    for (int i = 0; i < Traits::kChunk; ++i) v[i] = terms.apply(i, v[i] + bias[i]);
    if (p.residual) {
      float residual[Traits::kChunk];
      unpack<T>(load_chunk<Traits>(static_cast<const T*>(p.residual) + offset, valid), residual);
#pragma unroll
      for (int i = 0; i < Traits::kChunk; ++i) v[i] += residual[i];
    }
    p.epilogue.act.visit([&](auto act, float slope) {
#pragma unroll
      for (int i = 0; i < Traits::kChunk; ++i) v[i] = act.forward(v[i], slope);
    });
    const uint4 rounded = pack<T>(v);
    store_chunk<Traits>(static_cast<T*>(p.y) + offset, rounded, valid);
    if (p.partial) {
      unpack<T>(rounded, v);
      store_floats(at, v);
    }
  }
}

// Mean and centred sum of squares of each column, by kThreads / kColumns threads a column. Everything is taken about
// the column's first value, which lies within the tile's own spread however far the mean is from zero; and the mean
// leaves as that value and the rest, two floats, for one would round it by more than the tiles' means differ.
template <class Traits>
__device__ __forceinline__ void store_tile_moments(const ConvForwardParams& p, const TilePlace& place,
                                                   const float* tile,
                                                   float* scratch) {  // [kShares, 2, kColumns]
  constexpr int kShares = Traits::kThreads / Traits::kColumns, kShareRows = Traits::kRows / kShares;
  const ConvGeometry& g = p.geometry;
  const int column = threadIdx.x % Traits::kColumns, share = threadIdx.x / Traits::kColumns;
  const int rows = least(Traits::kRows, g.out_pixels - place.row_tile * Traits::kRows);
  const int end = least(rows, (share + 1) * kShareRows);
  const float first = tile[column];
  float sum = 0.f, squares = 0.f;
  for (int row = share * kShareRows; row < end; ++row) {
    const float centred = tile[row * Traits::kTilePitch + column] - first;
    sum += centred;
    squares = fmaf(centred, centred, squares);
  }
  scratch[share * 2 * Traits::kColumns + column] = sum;
  scratch[(share * 2 + 1) * Traits::kColumns + column] = squares;
  __syncthreads();
  if (share || place.first_column + column >= g.group_out_channels) return;
#pragma unroll
  for (int other = 1; other < kShares; ++other) {
    sum += scratch[other * 2 * Traits::kColumns + column];
    squares += scratch[(other * 2 + 1) * Traits::kColumns + column];
  }
  const int channel = place.group * g.group_out_channels + place.first_column + column;
  float* const out = p.partial + int64_t(place.row_tile) * kMomentParts * g.out_channels + channel;
  const float rest = sum / float(rows);
  out[0] = first;
  out[g.out_channels] = rest;
  out[2 * g.out_channels] = fmaf(-rest, sum, squares);
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) conv_forward_kernel(ConvForwardParams p) {
  DYNAMIC_SHARED(unsigned char, shared);
  SHARED_ARRAY(float, scratch, Traits::kThreads * 2);
  const ConvGeometry& g = p.geometry;
  const TilePlace place = tile_place<Traits>(g.group_out_channels, g.groups);
  ForwardOperands<Traits> operands(p, place);
  Product<Traits> product;
  const int steps = g.kernel_h * g.kernel_w * ((g.group_channels + Traits::kDepth - 1) / Traits::kDepth);
  multiply<Traits>(operands, steps, shared, product);
  float* const tile = finish_tile<Traits>(product, shared);
  store_output<Traits>(p, place, tile);
  if (p.partial == nullptr) return;
  __syncthreads();
  store_tile_moments<Traits>(p, place, tile, scratch);
}

}  // namespace conv
}  // namespace fused_resnet
