// The backward of bn_add_act: z is recomputed, the channel sums are taken in the pass that writes the gradients, and
// its last block finishes the vectors. Without a residual it follows a dgrad that is not ours.
#include "batch_norm.h"
#include "column_sums.h"
#include "launchers.h"

namespace fused_resnet {

namespace {

// Of p, p (x - mean), p (residual - mean)
template <class S>
using Sums = PlainSums<S, 3>;

template <class T>
struct Tensors {
  const T* g_out;     // [outer, C, inner]
  const T* x;         // [outer, C, inner]
  const T* residual;  // [outer, C, inner]
  T* g_x;             // [outer, C, inner]
  T* g_residual;      // [outer, C, inner]
};

template <class S>
struct Vectors {
  Norm<S> bn, residual_bn;
  S* g_bn;           // [4, C] or null
  S* g_residual_bn;  // [4, C] or null
};

// The rare activations after a residual need more registers than two blocks leave: fewer threads, but no spill.
template <bool kResidual, class Act>
constexpr int kBlocks = kResidual && !Act::kIsRelu ? 1 : kLeastBlocks;

template <class T, bool kResidual, class Walk, class Act>
__global__ void __launch_bounds__(kThreads, (kBlocks<kResidual, Act>))
    bn_add_act_backward_kernel(Walk walk, Act act, Tensors<T> tensors, Vectors<Accumulate<T>> vectors,
                               SumsWorkspace<Sums<Accumulate<T>>> workspace) {
  using S = Accumulate<T>;
  using P = Pack<T, Walk::kLanes>;
  Sums<S> sums[Walk::kLanes];
  if (walk.inside()) {
    ChannelNorm<S> norm[Walk::kChannels], residual_norm[Walk::kChannels];
    load_norms_of_sum(vectors.bn, vectors.residual_bn, walk.first_channel(), norm, residual_norm);
    for (int64_t row = walk.first_row(); row < walk.rows; row += walk.row_step()) {
      const int64_t at = walk.offset(row);
      const P g = P::load(tensors.g_out + at), x = P::load(tensors.x + at);
      P r{}, gradient;
      if constexpr (kResidual) r = P::load(tensors.residual + at);
      S z[Walk::kLanes], p[Walk::kLanes];
#pragma unroll
      for (int i = 0; i < Walk::kLanes; ++i) {
        const int c = walk.channel_of(i);
        p[i] = widen(g.lane[i]);
        z[i] = norm[c](widen(x.lane[i]));
        if constexpr (kResidual) z[i] += residual_norm[c](widen(r.lane[i]));
      }
      activate_backward_lanes(act, z, p);
#pragma unroll
      for (int i = 0; i < Walk::kLanes; ++i) {
        const int c = walk.channel_of(i);
        sums[i].value[0] += p[i];
        sums[i].value[1] += p[i] * (widen(x.lane[i]) - norm[c].mean);
        gradient.lane[i] = narrow<T>(p[i] * norm[c].scale);
      }
      gradient.store(tensors.g_x + at);
      if constexpr (kResidual) {
#pragma unroll
        for (int i = 0; i < Walk::kLanes; ++i) {
          const int c = walk.channel_of(i);
          sums[i].value[2] += p[i] * (widen(r.lane[i]) - residual_norm[c].mean);
          gradient.lane[i] = narrow<T>(p[i] * residual_norm[c].scale);
        }
        gradient.store(tensors.g_residual + at);
      }
    }
  }
  if (!vectors.g_bn && !vectors.g_residual_bn) return;
  finish_sums(walk, sums, workspace, [=](int64_t channel, const Sums<S>& sum) {
    const auto [s, t, t_residual] = sum.value;
    if (vectors.g_bn) vectors.bn.store_gradients(vectors.g_bn, walk.channels, channel, s, t);
    if (vectors.g_residual_bn)
      vectors.residual_bn.store_gradients(vectors.g_residual_bn, walk.channels, channel, s, t_residual);
  });
}

template <class T, bool kResidual, class Walk, class Act>
cudaError_t launch_typed(const BnAddActBackwardArgs& a, const Walk& walk, const Act& act, cudaStream_t stream) {
  using S = Accumulate<T>;
  const auto l = sums_launch(walk);
  const SumsWorkspace<Sums<S>> workspace(a.workspace, l, a.view.channels);
  if (a.g_bn || a.g_residual_bn) {
    if (const cudaError_t error = workspace.clear(l, stream)) return error;
  }
  const Tensors<T> tensors{static_cast<const T*>(a.g_out), static_cast<const T*>(a.x),
                           static_cast<const T*>(a.residual), static_cast<T*>(a.g_x), static_cast<T*>(a.g_residual)};
  const Vectors<S> vectors{Norm<S>(a.bn), Norm<S>(a.residual_bn), static_cast<S*>(a.g_bn),
                           static_cast<S*>(a.g_residual_bn)};
  return launch(bn_add_act_backward_kernel<T, kResidual, Walk, Act>, l.grid, l.block, 0, stream, walk, act, tensors,
                vectors, workspace);
}

}  // namespace

int64_t bn_add_act_backward_workspace(DType dtype, const ChannelView& view) {
  int64_t bytes = 0;
  visit_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    bytes = sums_workspace_bytes<T, Sums<Accumulate<T>>>(view);
    return cudaSuccess;
  });
  return bytes;
}

LaunchError launch_bn_add_act_backward(const BnAddActBackwardArgs& a, Stream stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return visit_dtype(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool aligned =
        aligned16(a.g_out) && aligned16(a.x) && aligned16(a.residual) && aligned16(a.g_x) && aligned16(a.g_residual);
    return visit_columns<T>(a.view, aligned, [&](const auto& walk) {
      return visit_activation<Accumulate<T>>(a.activation, [&](const auto& act) {
        return a.residual ? launch_typed<T, true>(a, walk, act, queue) : launch_typed<T, false>(a, walk, act, queue);
      });
    });
  });
}

}  // namespace fused_resnet
