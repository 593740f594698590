// The backward of bn_add_act: z is recomputed, and the channel sums are taken in the pass that writes the gradients.
#include "dispatch.h"
#include "launchers.h"
#include "tiles.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

template <class T, Activation A, class Layout>
void bn_add_act_backward_kernel(const BnAddActBackwardArgs& a) {
  using S = Accumulate<T>;
  const auto* g_out = static_cast<const T*>(a.g_out);
  const auto* x = static_cast<const T*>(a.x);
  const auto* residual = static_cast<const T*>(a.residual);
  const bool writes_p = a.p != nullptr;
  const Output<T> g_x(writes_p ? a.p : a.g_x, a.view), g_residual(a.g_residual, a.view);
  const S slope = static_cast<S>(a.activation.negative_slope);
  const int threads = threads_for(a.view.elements(), a.threads);
  const Norm<S> norm(a.view.channels, a.bn), residual_norm(a.view.channels, a.residual_bn);
  const ChannelSums<S, Layout> s(a.view, threads), t(a.view, threads), t_residual(a.view, threads);

  for_each(Layout::template blocks<S>(a.view), threads, [&](int part, int64_t block) {
    Layout::template visit<S>(a.view, block, [&](const auto& group) {
      const int64_t c = group.channel();
      const auto bn = Layout::norm(norm, c), residual_bn = Layout::norm(residual_norm, c);
      Vector<S> sum_p{}, sum_px{}, sum_pr{};
      group.each([&](const auto& tile) {
        const Vector<S> value = tile.load(x);
        Vector<S> z = bn(value), r{};
        if (residual) {
          r = tile.load(residual);
          z += residual_bn(r);
        }
        const Vector<S> p = tile.load(g_out) * activate_derivative<A>(z, slope);
        sum_p += p;
        sum_px += p * (value - bn.mean);
        g_x.store(tile, writes_p ? p : p * bn.scale);
        if (residual) {
          sum_pr += p * (r - residual_bn.mean);
          if (!writes_p) g_residual.store(tile, p * residual_bn.scale);
        }
      });
      s.add(part, c, sum_p);
      t.add(part, c, sum_px);
      if (residual) t_residual.add(part, c, sum_pr);
    });
    s.flush(part, block);
    t.flush(part, block);
    t_residual.flush(part, block);
  });

  const double* sum_p = s.total();
  if (a.g_bn) norm.gradients(a.bn, sum_p, t.total(), static_cast<S*>(a.g_bn));
  if (a.g_residual_bn)
    residual_norm.gradients(a.residual_bn, sum_p, t_residual.total(), static_cast<S*>(a.g_residual_bn));
}

}  // namespace

void launch_bn_add_act_backward(const BnAddActBackwardArgs& a) {
  visit_dtype(a.dtype, [&](auto type) {
    visit_activation(a.activation.kind, [&](auto activation) {
      visit_layout(a.view, [&](auto layout) {
        using T = typename decltype(type)::type;
        using Layout = decltype(layout);
        bn_add_act_backward_kernel<T, decltype(activation)::value, Layout>(a);
      });
    });
  });
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
