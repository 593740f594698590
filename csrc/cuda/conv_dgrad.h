// p = dgrad(g, weight) act'(norm(x)) as an implicit matrix product: rows are input pixels of one phase, columns input
// channels, the depth is the output channels of every tap that reaches the phase. g is made of g_y and y as they
// arrive; the epilogue multiplies by act', stores g_x = scale p and sums p and p (x - mean), from which the finishing
// launch makes the batch norm's gradients.
#pragma once

#include "conv_phases.h"
#include "conv_pipeline.h"

namespace fused_resnet {
namespace conv {

template <class Traits>
struct DgradOperands {
  using T = typename Traits::T;
  static constexpr bool kDeepA = true, kDeepB = false;
  static constexpr int kOffsetA = 0, kOffsetY = Traits::kRows * Traits::kDeepPitch, kOffsetB = 2 * kOffsetY;
  static constexpr int kStageBytes = kOffsetB + Traits::kDepth * Traits::kWidePitchN;

  const ConvDgradParams& p;
  const TilePlace place;
  DeepPixels<Traits> pixels;
  TapWalk fetched;
  int arrived = 0;  // channel

  __device__ __forceinline__ DgradOperands(const ConvDgradParams& params, const TilePlace& tile, const PhaseTile& phase)
      : p(params),
        place(tile),
        pixels({params.geometry.out_height, params.geometry.out_width, params.geometry.out_channels,
                params.geometry.group_out_channels},
               tile.group, [&](int row) { return phase.source(params.geometry, row); }),
        fetched(phase.walk(params)) {}

  __device__ __forceinline__ void fetch(unsigned char* at, int stage) {
    const ConvGeometry& g = p.geometry;
    pixels.fetch(-fetched.r * p.steps_h.source, -fetched.s * p.steps_w.source, fetched.channel, stage,
                 static_cast<const T*>(p.g_y), at + kOffsetA, static_cast<const T*>(p.y),
                 p.gradient.g_mean ? at + kOffsetY : nullptr);
    Filter<Traits, false>::fetch(g, fetched.tap, fetched.channel, static_cast<const T*>(p.weight), place.group,
                                 place.first_column, at + kOffsetB);
    fetched.advance(Traits::kDepth, g.group_out_channels);
  }

  __device__ __forceinline__ void transform(unsigned char* at, int stage) {
    using Chunks = DeepChunks<Traits>;
    const ConvGeometry& g = p.geometry;
    if (p.gradient.g_mean) {
      const int channel = arrived + Chunks::column();
      const int valid = valid_elements<Traits>(channel, g.group_out_channels);
      ChannelTerms<Traits::kChunk> terms;
      load_gradient<Traits>(p.gradient, pixels.first_channel + channel, valid, terms);
#pragma unroll
      for (int i = 0; i < Traits::kChunksPerThread; ++i) {
        gradient_chunk<Traits>(terms, pixels.real.get(stage, i) ? valid : 0,
                               Chunks::at(at + kOffsetA, Traits::kDeepPitch, i),
                               Chunks::at(at + kOffsetY, Traits::kDeepPitch, i));
      }
    }
    arrived = next_channel(arrived, Traits::kDepth, g.group_out_channels);
  }
};

// Stores g_x; returns in `sums` this thread's shares of the sums of p and of p (x - mean) over its rows.
template <class Traits>
__device__ __forceinline__ void store_gradient(const ConvDgradParams& params, const TilePlace& place,
                                               const int* pixels,  // [kRows]
                                               const float* tile, float (&sums)[2][Traits::kChunk]) {
  using T = typename Traits::T;
  using Chunks = ThreadChunks<Traits, Traits::kColumns * sizeof(T)>;
  const ConvGeometry& g = params.geometry;
  const int column = Chunks::column(), valid = valid_elements<Traits>(place.first_column + column, g.group_channels);
  const int channel = place.group * g.group_channels + place.first_column + column;
#pragma unroll
  for (int i = 0; i < Traits::kChunk; ++i) sums[0][i] = sums[1][i] = 0.f;
  if (valid <= 0) return;
  ChannelTerms<Traits::kChunk> terms;
  load_norm<Traits>(params.prologue, channel, valid, terms);
  for (int row = Chunks::row(0); row < Traits::kRows && pixels[row] >= 0; row += Chunks::kRowStep) {
    const int64_t offset = int64_t(pixels[row]) * g.channels + channel;
    float p[Traits::kChunk];
    load_floats(tile + row * Traits::kTilePitch + column, p);
    if (is_needed(params.prologue)) {
      float x[Traits::kChunk];
      unpack<T>(load_chunk<Traits>(static_cast<const T*>(params.x) + offset, valid), x);
      params.prologue.act.visit([&](auto act, float slope) {
#pragma unroll
        for (int i = 0; i < Traits::kChunk; ++i) p[i] *= act.derivative(terms.apply(i, x[i]), slope);
      });
#pragma unroll
      for (int i = 0; i < Traits::kChunk; ++i) {
        sums[0][i] += p[i];
        sums[1][i] = fmaf(p[i], x[i] - terms.mean[i], sums[1][i]);
        p[i] *= terms.scale[i];
      }
    }
    store_chunk<Traits>(static_cast<T*>(params.g_x) + offset, pack<T>(p), valid);
  }
}

// Adds the threads' shares up in fixed order: a thread for each sum of each column.
template <class Traits>
__device__ __forceinline__ void store_tile_sums(const ConvDgradParams& p, const TilePlace& place,
                                                const float (&sums)[2][Traits::kChunk],
                                                float* scratch) {  // [kShares, 2, kColumns]
  using Chunks = ThreadChunks<Traits, Traits::kColumns * sizeof(typename Traits::T)>;
  constexpr int kShares = Chunks::kRowStep;
  static_assert(Traits::kThreads == 2 * Traits::kColumns &&
                kShares * 2 * Traits::kColumns * 4 <= kFinishedTileBytes<Traits>);
  const ConvGeometry& g = p.geometry;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    store_floats(scratch + (Chunks::row(0) * 2 + which) * Traits::kColumns + Chunks::column(), sums[which]);
  }
  __syncthreads();
  const int column = threadIdx.x % Traits::kColumns, which = threadIdx.x / Traits::kColumns;
  if (place.first_column + column >= g.group_channels) return;
  float sum = 0.f;
#pragma unroll
  for (int share = 0; share < kShares; ++share) sum += scratch[share * Traits::kThreads + threadIdx.x];
  const int channel = place.group * g.group_channels + place.first_column + column;
  p.partial[(int64_t(place.row_tile) * 2 + which) * g.channels + channel] = sum;
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) conv_dgrad_kernel(ConvDgradParams p) {
  DYNAMIC_SHARED(unsigned char, shared);
  SHARED_ARRAY(int, pixels, Traits::kRows);  // of x, by row; their place in registers is the product's
  const ConvGeometry& g = p.geometry;
  const TilePlace place = tile_place<Traits>(g.group_channels, g.groups);
  const PhaseTile phase = PhaseTile::of<Traits>(p, place.row_tile);
  if (threadIdx.x < Traits::kRows) pixels[threadIdx.x] = phase.pixel(g, threadIdx.x);
  DgradOperands<Traits> operands(p, place, phase);
  Product<Traits> product;
  const int steps = phase.taps() * ((g.group_out_channels + Traits::kDepth - 1) / Traits::kDepth);
  multiply<Traits>(operands, steps, shared, product);
  float* const tile = finish_tile<Traits>(product, shared);
  float sums[2][Traits::kChunk];
  store_gradient<Traits>(p, place, pixels, tile, sums);
  if (p.partial == nullptr) return;
  __syncthreads();  // the sums take the tile's memory
  store_tile_sums<Traits>(p, place, sums, tile);
}

}  // namespace conv
}  // namespace fused_resnet
