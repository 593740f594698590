// The convolution's gradient with respect to its filter: act(norm(x)) is computed anew, and the statistics' share added
// to the gradient, while reading.
#include "conv_filter.h"
#include "conv_sources.h"
#include "launchers.h"
#include "space_to_depth.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

void launch_conv_wgrad(const ConvWgradArgs& a) {
  const ConvShape& shape = a.conv.shape;
  const int threads = threads_for_conv(a.conv);
  visit_dtype(a.conv.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    auto* g_weight = static_cast<Accumulate<T>*>(a.g_weight);
    const auto wgrad = [&](const Source<Accumulate<T>>& u, const Source<Accumulate<T>>& g) {
      const auto in_parts = [&](auto parts) { line_wgrad<parts>(shape, u, g, threads, g_weight, a.conv.strides); };
      if (visit_parts<Accumulate<T>>(a.conv, in_parts)) return;
      if (is_space_to_depth(a.conv)) {
        const SpaceToDepthFilter<Accumulate<T>> g_filter(a.conv);
        const ConvArgs folded = space_to_depth(a.conv);
        winograd_wgrad(folded.algorithm, folded.shape, SpaceToDepthSource<Accumulate<T>>(shape, u), g, threads,
                       g_filter.data(), folded.strides);
        g_filter.write(g_weight);
      } else if (is_winograd(a.conv))
        winograd_wgrad(a.conv.algorithm, shape, u, g, threads, g_weight, a.conv.strides);
      else if (is_narrow(a.conv))
        grouped_wgrad(shape, u, g, threads, g_weight, a.conv.strides);
      else if (shape.groups > 1)
        strip_wgrad(shape, u, g, threads, g_weight, a.conv.strides);
      else
        gather_wgrad(shape, u, g, threads, g_weight, a.conv.strides);
    };
    with_activated<T>(a.x, shape.channels, a.bn, a.activation, [&](const auto& u) {
      with_gradient<T>(a.gradient, shape.batch * shape.out_height * shape.out_width, shape.out_channels,
                       [&](const auto& g) { wgrad(u, g); });
    });
  });
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
