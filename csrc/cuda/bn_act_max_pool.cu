// out = max over each window of act(norm(x)), with the winner's place in its window as one byte. Windows that overlap
// read x again from cache, not from memory.
#include "batch_norm.h"
#include "launchers.h"
#include "pooling.h"

namespace fused_resnet {

namespace {

template <class T, class Walk, class Act>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    bn_act_max_pool_kernel(Walk walk, Act act, PoolShape shape,
                           const T* __restrict__ x,  // [N, H, W, C] or [N, C, H, W], as out and indices
                           Norm<Accumulate<T>> bn,
                           T* __restrict__ out,              // [N, OH, OW, C] or [N, C, OH, OW]
                           uint8_t* __restrict__ indices) {  // as out
  using S = Accumulate<T>;
  using P = Pack<T, Walk::kLanes>;
  if (!walk.inside()) return;
  ChannelNorm<S> norm[Walk::kChannels];
  bn.load(walk.first_channel(), norm);
  for (int64_t row = walk.first_row(); row < walk.rows; row += walk.row_step()) {
    const Pixel pixel(row, shape.out_height, shape.out_width);
    const Window h(pixel.h, shape.stride_h, shape.pad_h, shape.kernel_h, shape.height);
    const Window w(pixel.w, shape.stride_w, shape.pad_w, shape.kernel_w, shape.width);
    S best[Walk::kLanes];
    Pack<uint8_t, Walk::kLanes> winner;
#pragma unroll
    for (int i = 0; i < Walk::kLanes; ++i) {
      best[i] = S(-INFINITY);
      winner.lane[i] = static_cast<uint8_t>(h.begin * shape.kernel_w + w.begin);
    }
    for (int64_t r = h.begin; r < h.end; ++r) {
      for (int64_t s = w.begin; s < w.end; ++s) {
        const int64_t from = (h.origin + r) * shape.width + w.origin + s;
        const P pack = P::load(x + offset_of_pixel(walk, pixel.n, shape.height * shape.width, from));
        S u[Walk::kLanes];
#pragma unroll
        for (int i = 0; i < Walk::kLanes; ++i) u[i] = norm[walk.channel_of(i)](widen(pack.lane[i]));
        activate_lanes(act, u);
#pragma unroll
        for (int i = 0; i < Walk::kLanes; ++i) {
          if (u[i] > best[i] || u[i] != u[i]) {  // NaN wins, the last one, as in PyTorch
            best[i] = u[i];
            winner.lane[i] = static_cast<uint8_t>(r * shape.kernel_w + s);
          }
        }
      }
    }
    P result;
#pragma unroll
    for (int i = 0; i < Walk::kLanes; ++i) result.lane[i] = narrow<T>(best[i]);
    result.store(out + walk.offset(row));
    winner.store(indices + walk.offset(row));
  }
}

}  // namespace

LaunchError launch_bn_act_max_pool(const BnActMaxPoolArgs& a, Stream stream) {
  return visit_dtype(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using S = Accumulate<T>;
    const bool aligned = aligned16(a.x) && aligned16(a.out) && aligned16(a.indices);
    return visit_pixels<T>(output_view(a.shape, a.channels_last), a.channels_last, aligned, [&](const auto& walk) {
      return visit_activation<S>(a.activation, [&](const auto& act) {
        const auto l = pass_launch(walk);
        return launch(bn_act_max_pool_kernel<T, std::decay_t<decltype(walk)>, std::decay_t<decltype(act)>>, l.grid,
                      l.block, 0, static_cast<cudaStream_t>(stream), walk, act, a.shape, static_cast<const T*>(a.x),
                      Norm<S>(a.bn), static_cast<T*>(a.out), a.indices);
      });
    });
  });
}

}  // namespace fused_resnet
