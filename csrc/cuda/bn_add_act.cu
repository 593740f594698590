// out = act(norm(x) + residual_norm(residual)): one read of each input, one write. Without a residual it is batch norm
// and activation, the prologue of a convolution that is not ours.
#include "batch_norm.h"
#include "dispatch.h"
#include "launchers.h"

namespace fused_resnet {

namespace {

template <class T, class Walk, class Act>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    bn_add_act_kernel(Walk walk, Act act,
                      const T* __restrict__ x,  // [outer, C, inner]
                      Norm<Accumulate<T>> bn,
                      const T* __restrict__ residual,  // [outer, C, inner]
                      Norm<Accumulate<T>> residual_bn,
                      T* __restrict__ out) {  // [outer, C, inner]
  using S = Accumulate<T>;
  using P = Pack<T, Walk::kLanes>;
  if (!walk.inside()) return;
  ChannelNorm<S> norm[Walk::kChannels], residual_norm[Walk::kChannels];
  load_norms_of_sum(bn, residual_bn, walk.first_channel(), norm, residual_norm);
  for (int64_t row = walk.first_row(); row < walk.rows; row += walk.row_step()) {
    const int64_t at = walk.offset(row);
    P pack = P::load(x + at);
    S z[Walk::kLanes];
#pragma unroll
    for (int i = 0; i < Walk::kLanes; ++i) z[i] = norm[walk.channel_of(i)](widen(pack.lane[i]));
    if (residual) {
      const P r = P::load(residual + at);
#pragma unroll
      for (int i = 0; i < Walk::kLanes; ++i) z[i] += residual_norm[walk.channel_of(i)](widen(r.lane[i]));
    }
    activate_lanes(act, z);
#pragma unroll
    for (int i = 0; i < Walk::kLanes; ++i) pack.lane[i] = narrow<T>(z[i]);
    pack.store(out + at);
  }
}

}  // namespace

LaunchError launch_bn_add_act(const BnAddActArgs& a, Stream stream) {
  return visit_dtype(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using S = Accumulate<T>;
    const bool aligned = aligned16(a.x) && aligned16(a.residual) && aligned16(a.out);
    return visit_columns<T>(a.view, aligned, [&](const auto& walk) {
      return visit_activation<S>(a.activation, [&](const auto& act) {
        const auto l = pass_launch(walk);
        return launch(bn_add_act_kernel<T, std::decay_t<decltype(walk)>, std::decay_t<decltype(act)>>, l.grid, l.block,
                      0, static_cast<cudaStream_t>(stream), walk, act, static_cast<const T*>(a.x), Norm<S>(a.bn),
                      static_cast<const T*>(a.residual), Norm<S>(a.residual_bn), static_cast<T*>(a.out));
      });
    });
  });
}

}  // namespace fused_resnet
