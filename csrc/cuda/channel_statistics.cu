// Mean and biased variance of each channel in one read, and what their gradients add to that of the tensor.
#include "column_sums.h"
#include "launchers.h"
#include "moments.h"

namespace fused_resnet {

namespace {

template <class T, class Walk>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    channel_statistics_kernel(Walk walk,
                              const T* __restrict__ y,  // [outer, C, inner]
                              SumsWorkspace<Moments<Accumulate<T>>> workspace,
                              Accumulate<T>* __restrict__ mean,   // [C]
                              Accumulate<T>* __restrict__ var) {  // [C]
  using S = Accumulate<T>;
  Moments<S> lanes[Walk::kLanes];
  if (walk.inside()) {
    S count = 0;
    for (int64_t row = walk.first_row(); row < walk.rows; row += walk.row_step()) {
      const auto pack = Pack<T, Walk::kLanes>::load(y + walk.offset(row));
      const S reciprocal = S(1) / (count += 1);
#pragma unroll
      for (int i = 0; i < Walk::kLanes; ++i) lanes[i].push(widen(pack.lane[i]), count, reciprocal);
    }
  }
  const auto finish = [=](int64_t channel, const Moments<S>& sum) {
    mean[channel] = sum.mean + sum.mean_low;
    var[channel] = sum.m2 / sum.count;
  };
  finish_sums(walk, lanes, workspace, finish);
}

// g = g_y + g_mean / m + 2 g_var (y - mean) / m: before a gradient convolution that is not ours.
template <class T, class Walk>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    channel_statistics_backward_kernel(Walk walk,
                                       const T* __restrict__ g_y,                 // [outer, C, inner]
                                       const T* __restrict__ y,                   // [outer, C, inner]
                                       const Accumulate<T>* __restrict__ mean,    // [C]
                                       const Accumulate<T>* __restrict__ g_mean,  // [C]
                                       const Accumulate<T>* __restrict__ g_var,   // [C]
                                       Accumulate<T> reciprocal,                  // 1 / m
                                       T* __restrict__ g) {                       // [outer, C, inner]
  using S = Accumulate<T>;
  using P = Pack<T, Walk::kLanes>;
  if (!walk.inside()) return;
  S center[Walk::kChannels], offset[Walk::kChannels], slope[Walk::kChannels];
#pragma unroll
  for (int c = 0; c < Walk::kChannels; ++c) {
    const int64_t channel = walk.first_channel() + c;
    center[c] = mean[channel];
    offset[c] = g_mean[channel] * reciprocal;
    slope[c] = 2 * g_var[channel] * reciprocal;
  }
  for (int64_t row = walk.first_row(); row < walk.rows; row += walk.row_step()) {
    const int64_t at = walk.offset(row);
    const P value = P::load(y + at);
    P gradient = P::load(g_y + at);
#pragma unroll
    for (int i = 0; i < Walk::kLanes; ++i) {
      const int c = walk.channel_of(i);
      const S share = fma(slope[c], widen(value.lane[i]) - center[c], offset[c]);
      gradient.lane[i] = narrow<T>(widen(gradient.lane[i]) + share);
    }
    gradient.store(g + at);
  }
}

}  // namespace

int64_t channel_statistics_workspace(DType dtype, const ChannelView& view) {
  int64_t bytes = 0;
  visit_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    bytes = sums_workspace_bytes<T, Moments<Accumulate<T>>>(view);
    return cudaSuccess;
  });
  return bytes;
}

LaunchError launch_channel_statistics(const ChannelStatisticsArgs& a, Stream stream) {
  return visit_dtype(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using S = Accumulate<T>;
    return visit_columns<T>(a.view, aligned16(a.y), [&](const auto& walk) {
      const auto l = sums_launch(walk);
      const SumsWorkspace<Moments<S>> workspace(a.workspace, l, a.view.channels);
      const auto queue = static_cast<cudaStream_t>(stream);
      if (const cudaError_t error = workspace.clear(l, queue)) return error;
      return launch(channel_statistics_kernel<T, std::decay_t<decltype(walk)>>, l.grid, l.block, 0, queue, walk,
                    static_cast<const T*>(a.y), workspace, static_cast<S*>(a.mean), static_cast<S*>(a.var));
    });
  });
}

LaunchError launch_channel_statistics_backward(const ChannelStatisticsBackwardArgs& a, Stream stream) {
  return visit_dtype(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using S = Accumulate<T>;
    const bool aligned = aligned16(a.g_y) && aligned16(a.y) && aligned16(a.g);
    return visit_columns<T>(a.view, aligned, [&](const auto& walk) {
      const auto l = pass_launch(walk);
      return launch(channel_statistics_backward_kernel<T, std::decay_t<decltype(walk)>>, l.grid, l.block, 0,
                    static_cast<cudaStream_t>(stream), walk, static_cast<const T*>(a.g_y), static_cast<const T*>(a.y),
                    static_cast<const S*>(a.mean), static_cast<const S*>(a.g_mean), static_cast<const S*>(a.g_var),
                    S(1) / S(a.view.per_channel()), static_cast<T*>(a.g));
    });
  });
}

}  // namespace fused_resnet
