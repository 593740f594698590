// The loop over the depth of the sum, kStages deep: while one stage is multiplied, the copies of the next are under
// way.
#pragma once

#include "conv_operands.h"
#include "conv_product.h"

namespace fused_resnet {
namespace conv {

// `operands` fetches a stage, transforms it in place once it has arrived, and says where its two operands lie. One
// barrier a step serves both ways: past it the stage at hand is complete for all threads, and the stage that the next
// fetch overwrites was multiplied by all.
template <class Traits, class Operands>
__device__ __forceinline__ void multiply(Operands& operands, int steps, unsigned char* shared,
                                         Product<Traits>& product) {
  constexpr int kStages = Traits::kStages;
  static_assert(kStages >= 3);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps) operands.fetch(shared + stage * Operands::kStageBytes, stage);
    ptx::cp_async_commit();  // an empty group too, so that the count of groups tells the step
  }
  int stage = 0, ahead = kStages - 1;
  for (int step = 0; step < steps; ++step) {
    unsigned char* const at = shared + stage * Operands::kStageBytes;
    ptx::cp_async_wait<kStages - 2>();
    operands.transform(at, stage);
    __syncthreads();
    if (step + kStages - 1 < steps) operands.fetch(shared + ahead * Operands::kStageBytes, ahead);
    ptx::cp_async_commit();
    product.template add<Operands::kDeepA, Operands::kDeepB>(at + Operands::kOffsetA, at + Operands::kOffsetB);
    stage = stage + 1 == kStages ? 0 : stage + 1;
    ahead = ahead + 1 == kStages ? 0 : ahead + 1;
  }
  ptx::cp_async_wait<0>();
}

// The finished tile, in the memory that the stages had.
template <class Traits>
__device__ __forceinline__ float* finish_tile(const Product<Traits>& product, unsigned char* shared) {
  float* const tile = reinterpret_cast<float*>(shared);  // [kRows, kTilePitch]
  __syncthreads();
  product.store(tile);
  __syncthreads();
  return tile;
}

template <class Traits, class Operands>
constexpr int kSharedBytes =
    Traits::kStages * Operands::kStageBytes > kFinishedTileBytes<Traits> ? Traits::kStages * Operands::kStageBytes
                                                                         : kFinishedTileBytes<Traits>;

// Which tile a block computes. Neighbouring blocks share their rows, the larger operand, and find them in L2.
struct TilePlace {
  int row_tile, first_column, group;
};

template <class Traits>
__device__ __forceinline__ TilePlace tile_place(int columns, int groups) {
  const int column_tiles = (columns + Traits::kColumns - 1) / Traits::kColumns, per_row = column_tiles * groups;
  const int row_tile = blockIdx.x / per_row, within = blockIdx.x % per_row;
  return {row_tile, within % column_tiles * Traits::kColumns, within / column_tiles};
}

}  // namespace conv
}  // namespace fused_resnet
