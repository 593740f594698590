// Mean and biased variance of each channel by Welford's recurrence (Welford 1962), joined by Chan's formula (Chan,
// Golub, LeVeque 1979, eq. 2.1): one read, and nothing cancels, however large the mean.
#include "column_sums.h"
#include "dispatch.h"
#include "launchers.h"

namespace fused_resnet {

namespace {

template <class S>
struct Moments {
  S count = 0, mean = 0, m2 = 0;  // m2: sum of squares about the mean

  // The next element, where 1 / (count + 1) is known.
  __device__ __forceinline__ void push(S x, S reciprocal) {
    const S delta = x - mean;
    count += 1;
    mean += delta * reciprocal;
    m2 += delta * (x - mean);
  }

  __device__ __forceinline__ void add(const Moments& other) {
    const S total = count + other.count;
    if (other.count == 0) return;
    const S delta = other.mean - mean, weight = other.count / total;
    mean += delta * weight;
    m2 += other.m2 + delta * delta * count * weight;
    count = total;
  }
};

template <class T, class Walk>
__global__ void __launch_bounds__(kThreads) channel_statistics_kernel(Walk walk,
                                                                      const T* __restrict__ y,  // [outer, C, inner]
                                                                      SumsWorkspace<Moments<Accumulate<T>>> workspace,
                                                                      Accumulate<T>* __restrict__ mean,   // [C]
                                                                      Accumulate<T>* __restrict__ var) {  // [C]
  using S = Accumulate<T>;
  Moments<S> lanes[Walk::kLanes];
  if (walk.column() < walk.columns) {
    S count = 0;
    for (int64_t row = walk.first_row(); row < walk.rows; row += walk.row_step()) {
      const auto pack = Pack<T, Walk::kLanes>::load(y + walk.offset(row));
      const S reciprocal = S(1) / (count += 1);
#pragma unroll
      for (int i = 0; i < Walk::kLanes; ++i) lanes[i].push(widen(pack.lane[i]), reciprocal);
    }
  }
  const auto finish = [=](int64_t channel, const Moments<S>& sum) {
    mean[channel] = sum.mean;
    var[channel] = sum.m2 / sum.count;
  };
  if constexpr (Walk::kChannelsLast) {
    finish_sums(walk, lanes, workspace, finish);
  } else {
    Moments<S> channel[1] = {lanes[0]};
#pragma unroll
    for (int i = 1; i < Walk::kLanes; ++i) channel[0].add(lanes[i]);
    finish_sums(walk, channel, workspace, finish);
  }
}

}  // namespace

int64_t channel_statistics_workspace(DType dtype, const ChannelView& view) {
  int64_t bytes = 0;
  visit_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    // Either alignment may come: the larger of the two.
    for (const bool aligned : {false, true}) {
      visit_columns<T>(view, aligned, [&](const auto& walk) {
        const auto l = columns_launch(walk.columns, walk.rows, walk.kChannelsLast, kSumBlocks);
        const int64_t needed = SumsWorkspace<Moments<Accumulate<T>>>::bytes(l, view.channels);
        bytes = needed > bytes ? needed : bytes;
        return cudaSuccess;
      });
    }
    return cudaSuccess;
  });
  return bytes;
}

LaunchError launch_channel_statistics(const ChannelStatisticsArgs& a, Stream stream) {
  return visit_dtype(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using S = Accumulate<T>;
    return visit_columns<T>(a.view, aligned16(a.y), [&](const auto& walk) {
      const auto l = columns_launch(walk.columns, walk.rows, walk.kChannelsLast, kSumBlocks);
      const SumsWorkspace<Moments<S>> workspace(a.workspace, l, a.view.channels);
      const auto queue = static_cast<cudaStream_t>(stream);
      if (const cudaError_t error = workspace.clear(l, queue)) return error;
      return launch(channel_statistics_kernel<T, std::decay_t<decltype(walk)>>, l.grid, l.block, 0, queue, walk,
                    static_cast<const T*>(a.y), workspace, static_cast<S*>(a.mean), static_cast<S*>(a.var));
    });
  });
}

}  // namespace fused_resnet
