// Sums over the rows of each channel, finished in the launch that takes them and in an order that does not depend on
// which block comes last: the same inputs give the same bits.
//
// Every block reduces its rows in a tree and leaves the result in the workspace. The last block of a column to arrive,
// by a counter, reduces these in order, and finishes. A Sum has `Sum()`, its zero, and `add(const Sum&)`.
#pragma once

#include "dispatch.h"

namespace fused_resnet {

// Workspace of a launch: partial sums [grid.y, channels], then counters [grid.x].
template <class Sum>
struct SumsWorkspace {
  Sum* partial;
  unsigned* counters;

  static int64_t bytes(const ColumnsLaunch& l, int64_t channels) {
    return l.grid.y == 1 ? 0 : partial_bytes(l, channels) + counter_bytes(l);
  }
  SumsWorkspace(void* workspace, const ColumnsLaunch& l, int64_t channels)
      : partial(static_cast<Sum*>(workspace)),
        counters(reinterpret_cast<unsigned*>(static_cast<char*>(workspace) + partial_bytes(l, channels))) {}

  // Must run before the kernel, on its stream.
  cudaError_t clear(const ColumnsLaunch& l, cudaStream_t stream) const {
    return l.grid.y == 1 ? cudaSuccess : zero_async(counters, counter_bytes(l), stream);
  }

 private:
  static int64_t partial_bytes(const ColumnsLaunch& l, int64_t channels) {
    return (l.grid.y * channels * int64_t(sizeof(Sum)) + 15) / 16 * 16;
  }
  static int64_t counter_bytes(const ColumnsLaunch& l) { return l.grid.x * int64_t(sizeof(unsigned)); }
};

// kCount sums that belong together.
template <class S, int kCount>
struct PlainSums {
  S value[kCount] = {};

  __device__ __forceinline__ void add(const PlainSums& other) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) value[i] += other.value[i];
  }
};

// Bytes for a launch over this view: the larger need of the two alignments that pointers may come with.
template <class T, class Sum>
int64_t sums_workspace_bytes(const ChannelView& view) {
  int64_t bytes = 0;
  for (const bool aligned : {false, true}) {
    visit_columns<T>(view, aligned, [&](const auto& walk) {
      const int64_t needed = SumsWorkspace<Sum>::bytes(sums_launch(walk), view.channels);
      bytes = needed > bytes ? needed : bytes;
      return cudaSuccess;
    });
  }
  return bytes;
}

// Adds up sums[] over threadIdx.y; the threads of y 0 hold the result. Every thread of the block must come here.
template <int kChannels, class Sum>
__device__ __forceinline__ void reduce_rows(Sum (&sums)[kChannels]) {
  SHARED_ARRAY(Sum, shared, kThreads);
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    // One channel after the other: 3 KiB of shared memory, where all together would halve the occupancy.
    if (c > 0) __syncthreads();
    shared[thread] = sums[c];
#pragma unroll 1  // between barriers it would win nothing, and makes kernels two to three times as long
    for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.y < half) {
        sums[c].add(shared[thread + half * blockDim.x]);
        shared[thread] = sums[c];
      }
    }
  }
}

// True in every thread of the block that is the last of its blockIdx.x to come here; it then sees what all others
// wrote.
__device__ __forceinline__ bool last_block(unsigned* counters) {
  SHARED_ARRAY(bool, is_last, 1);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    is_last[0] = atomicAdd(&counters[blockIdx.x], 1u) == gridDim.y - 1;
    __threadfence();
  }
  __syncthreads();
  return is_last[0];
}

template <class Walk, class Sum, class Finish>
__device__ __forceinline__ void finish_channels(const Walk& walk, Sum (&sums)[Walk::kChannels],
                                                const SumsWorkspace<Sum>& workspace, const Finish& finish) {
  constexpr int kChannels = Walk::kChannels;
  const bool inside = walk.column() < walk.columns;
  const int64_t channel = walk.first_channel();
  reduce_rows(sums);
  if (gridDim.y > 1) {
    if (inside && threadIdx.y == 0) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) workspace.partial[blockIdx.y * walk.channels + channel + c] = sums[c];
    }
    if (!last_block(workspace.counters)) return;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      sums[c] = Sum();
      for (unsigned block = threadIdx.y; inside && block < gridDim.y; block += blockDim.y) {
        sums[c].add(workspace.partial[block * walk.channels + channel + c]);
      }
    }
    reduce_rows(sums);
  }
  if (inside && threadIdx.y == 0) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) finish(channel + c, sums[c]);
  }
}

// From the sums of each lane of a thread's packs: calls finish(channel, sum) once for each channel, in one thread.
// Every thread of the grid must come here.
template <class Walk, class Sum, class Finish>
__device__ __forceinline__ void finish_sums(const Walk& walk, Sum (&lanes)[Walk::kLanes],
                                            const SumsWorkspace<Sum>& workspace, const Finish& finish) {
  if constexpr (Walk::kChannelsLast) {
    finish_channels(walk, lanes, workspace, finish);
  } else {
    Sum channel[1] = {lanes[0]};
#pragma unroll
    for (int i = 1; i < Walk::kLanes; ++i) channel[0].add(lanes[i]);
    finish_channels(walk, channel, workspace, finish);
  }
}

}  // namespace fused_resnet
