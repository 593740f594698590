// out = act(norm(x) + residual_norm(residual)): one read of each input, one write.
#include "dispatch.h"
#include "launchers.h"
#include "tiles.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

template <class T, Activation A, class Layout>
void bn_add_act_kernel(const BnAddActArgs& a) {
  using S = Accumulate<T>;
  const auto* x = static_cast<const T*>(a.x);
  const auto* residual = static_cast<const T*>(a.residual);
  const Output<T> out(a.out, a.view);
  const S slope = static_cast<S>(a.activation.negative_slope);
  const Norm<S> norm(a.view.channels, a.bn), residual_norm(a.view.channels, a.residual_bn);
  for_each(Layout::template blocks<S>(a.view), threads_for(a.view.elements(), a.threads), [&](int, int64_t block) {
    Layout::template visit<S>(a.view, block, [&](const auto& group) {
      const auto bn = Layout::norm(norm, group.channel()), residual_bn = Layout::norm(residual_norm, group.channel());
      group.each([&](const auto& tile) {
        Vector<S> z = bn(tile.load(x));
        if (residual) z += residual_bn(tile.load(residual));
        out.store(tile, activate<A>(z, slope));
      });
    });
  });
}

}  // namespace

void launch_bn_add_act(const BnAddActArgs& a) {
  visit_dtype(a.dtype, [&](auto type) {
    visit_activation(a.activation.kind, [&](auto activation) {
      visit_layout(a.view, [&](auto layout) {
        using T = typename decltype(type)::type;
        using Layout = decltype(layout);
        bn_add_act_kernel<T, decltype(activation)::value, Layout>(a);
      });
    });
  });
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
