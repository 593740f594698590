// How threads walk over an image [outer, channels, inner]: by columns, each the packs of one channel or of neighbouring
// channels, and rows, the packs of a column.
//
//   channels_last (inner 1):  column = kLanes channels,                 rows = outer
//   contiguous:               column = a channel, a pack within inner,  rows = outer * inner / kLanes
//
// A block is threads [y][x], x over columns and y over rows; grid.x covers the columns, grid.y shares the rows. So a
// thread keeps its channels' vectors in registers, and whatever it sums belongs to its own column.
#pragma once

#include "types.h"

namespace fused_resnet {

constexpr int kThreads = 256;
// Of a multiprocessor: enough loads under way, and 128 registers a thread.
constexpr int kLeastBlocks = 2;

template <int kLanesOf, bool kChannelsLastOf>
struct Columns {
  static constexpr int kLanes = kLanesOf;
  static constexpr bool kChannelsLast = kChannelsLastOf;
  // Different channels of a pack.
  static constexpr int kChannels = kChannelsLast ? kLanes : 1;

  int64_t channels, columns, rows;
  int64_t inner_packs;  // of one image and channel

  explicit Columns(const ChannelView& view)
      : channels(view.channels),
        columns(kChannelsLast ? view.channels / kLanes : view.channels),
        rows(kChannelsLast ? view.outer : view.outer * (view.inner / kLanes)),
        inner_packs(view.inner / kLanes) {}

  __device__ __forceinline__ bool inside() const { return column() < columns; }
  __device__ __forceinline__ int64_t column() const { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
  __device__ __forceinline__ int64_t first_row() const { return int64_t(blockIdx.y) * blockDim.y + threadIdx.y; }
  __device__ __forceinline__ int64_t row_step() const { return int64_t(gridDim.y) * blockDim.y; }
  __device__ __forceinline__ int64_t first_channel() const { return column() * kChannels; }

  // Which of a thread's channels a lane belongs to.
  __device__ __forceinline__ static constexpr int channel_of(int lane) { return kChannelsLast ? lane : 0; }

  // Elements before the pack at `row` of this thread's column.
  __device__ __forceinline__ int64_t offset(int64_t row) const {
    if constexpr (kChannelsLast) {
      return (row * columns + column()) * kLanes;
    } else {
      const int64_t outer = rows <= 0x7fffffff ? uint32_t(row) / uint32_t(inner_packs) : row / inner_packs;
      return ((outer * columns + column()) * inner_packs + (row - outer * inner_packs)) * kLanes;
    }
  }
};

// The launch over these columns, of at most `most_blocks` blocks where the columns allow that.
struct ColumnsLaunch {
  dim3 grid, block;
};

inline ColumnsLaunch columns_launch(int64_t columns, int64_t rows, bool channels_last, int64_t most_blocks) {
  constexpr int64_t kLeastRows = 8;  // of a thread, for its vectors' sake
  int64_t x = 1;
  while (channels_last && x < 32 && x < columns) x *= 2;
  const int64_t y = kThreads / x, grid_x = (columns + x - 1) / x;
  const int64_t wanted = (rows + y * kLeastRows - 1) / (y * kLeastRows);
  const int64_t room = most_blocks / grid_x < 1 ? 1 : most_blocks / grid_x;
  const int64_t grid_y = wanted < 1 ? 1 : (wanted < room ? wanted : room);
  return {dim3(unsigned(grid_x), unsigned(grid_y)), dim3(unsigned(x), unsigned(y))};
}

// Blocks of a pass that writes alone, and of one that sums: the last block of the latter reads what all others left.
constexpr int64_t kPassBlocks = 2048, kSumBlocks = 512;

template <class Walk>
ColumnsLaunch pass_launch(const Walk& walk) {
  return columns_launch(walk.columns, walk.rows, Walk::kChannelsLast, kPassBlocks);
}

template <class Walk>
ColumnsLaunch sums_launch(const Walk& walk) {
  return columns_launch(walk.columns, walk.rows, Walk::kChannelsLast, kSumBlocks);
}

}  // namespace fused_resnet
