// The backward of bn_act_max_pool as a gather: each element of x looks for the windows that chose it, so that nothing
// is added atomically; then as in bn_add_act_backward.
#include "batch_norm.h"
#include "column_sums.h"
#include "launchers.h"
#include "pooling.h"

namespace fused_resnet {

namespace {

// Of p, p (x - mean)
template <class S>
using Sums = PlainSums<S, 2>;

template <class T>
struct Tensors {
  const T* g_out;          // [N, OH, OW, C] or [N, C, OH, OW]
  const uint8_t* indices;  // as g_out
  const T* x;              // [N, H, W, C] or [N, C, H, W]
  T* g_x;                  // as x
};

// g += g_out of the windows that chose this element of x.
template <class T, class Walk>
__device__ __forceinline__ void gather_gradient(const Walk& walk, const PoolShape& shape, const Tensors<T>& tensors,
                                                const Pixel& pixel, Accumulate<T> (&g)[Walk::kLanes]) {
  const auto oh = covering(pixel.h, shape.stride_h, shape.pad_h, shape.kernel_h, shape.out_height);
  const auto ow = covering(pixel.w, shape.stride_w, shape.pad_w, shape.kernel_w, shape.out_width);
  for (int64_t i = oh.begin; i < oh.end; ++i) {
    for (int64_t j = ow.begin; j < ow.end; ++j) {
      const int64_t pixels = shape.out_height * shape.out_width;
      const int64_t from = offset_of_pixel(walk, pixel.n, pixels, i * shape.out_width + j);
      const int place = static_cast<int>((pixel.h + shape.pad_h - i * shape.stride_h) * shape.kernel_w + pixel.w +
                                         shape.pad_w - j * shape.stride_w);
      const auto winner = Pack<uint8_t, Walk::kLanes>::load(tensors.indices + from);
      const auto value = Pack<T, Walk::kLanes>::load(tensors.g_out + from);
#pragma unroll
      for (int lane = 0; lane < Walk::kLanes; ++lane) {
        if (winner.lane[lane] == place) g[lane] += widen(value.lane[lane]);
      }
    }
  }
}

template <class T, class Walk, class Act>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    bn_act_max_pool_backward_kernel(Walk walk, Act act, PoolShape shape, Tensors<T> tensors, Norm<Accumulate<T>> bn,
                                    Accumulate<T>* __restrict__ g_bn,  // [4, C] or null
                                    SumsWorkspace<Sums<Accumulate<T>>> workspace) {
  using S = Accumulate<T>;
  using P = Pack<T, Walk::kLanes>;
  Sums<S> sums[Walk::kLanes];
  if (walk.inside()) {
    ChannelNorm<S> norm[Walk::kChannels];
    bn.load(walk.first_channel(), norm);
    for (int64_t row = walk.first_row(); row < walk.rows; row += walk.row_step()) {
      S p[Walk::kLanes] = {}, z[Walk::kLanes];
      gather_gradient(walk, shape, tensors, Pixel(row, shape.height, shape.width), p);
      const int64_t at = walk.offset(row);
      const P x = P::load(tensors.x + at);
#pragma unroll
      for (int i = 0; i < Walk::kLanes; ++i) z[i] = norm[walk.channel_of(i)](widen(x.lane[i]));
      activate_backward_lanes(act, z, p);
      P gradient;
#pragma unroll
      for (int i = 0; i < Walk::kLanes; ++i) {
        sums[i].value[0] += p[i];
        sums[i].value[1] += p[i] * (widen(x.lane[i]) - norm[walk.channel_of(i)].mean);
        gradient.lane[i] = narrow<T>(p[i] * norm[walk.channel_of(i)].scale);
      }
      gradient.store(tensors.g_x + at);
    }
  }
  if (!g_bn) return;
  finish_sums(walk, sums, workspace, [=](int64_t channel, const Sums<S>& sum) {
    bn.store_gradients(g_bn, walk.channels, channel, sum.value[0], sum.value[1]);
  });
}

}  // namespace

int64_t bn_act_max_pool_backward_workspace(DType dtype, const PoolShape& shape, bool channels_last) {
  int64_t bytes = 0;
  visit_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    bytes = sums_workspace_bytes<T, Sums<Accumulate<T>>>(input_view(shape, channels_last));
    return cudaSuccess;
  });
  return bytes;
}

LaunchError launch_bn_act_max_pool_backward(const BnActMaxPoolBackwardArgs& a, Stream stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return visit_dtype(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using S = Accumulate<T>;
    const bool aligned = aligned16(a.g_out) && aligned16(a.indices) && aligned16(a.x) && aligned16(a.g_x);
    return visit_pixels<T>(input_view(a.shape, a.channels_last), a.channels_last, aligned, [&](const auto& walk) {
      return visit_activation<S>(a.activation, [&](const auto& act) {
        const auto l = sums_launch(walk);
        const SumsWorkspace<Sums<S>> workspace(a.workspace, l, a.shape.channels);
        if (a.g_bn) {
          if (const cudaError_t error = workspace.clear(l, queue)) return error;
        }
        const Tensors<T> tensors{static_cast<const T*>(a.g_out), a.indices, static_cast<const T*>(a.x),
                                 static_cast<T*>(a.g_x)};
        return launch(bn_act_max_pool_backward_kernel<T, std::decay_t<decltype(walk)>, std::decay_t<decltype(act)>>,
                      l.grid, l.block, 0, queue, walk, act, a.shape, tensors, Norm<S>(a.bn), static_cast<S*>(a.g_bn),
                      workspace);
      });
    });
  });
}

}  // namespace fused_resnet
