// The convolution's gradient with respect to its input: the statistics' share while reading, act' and the channel sums
// while storing.
#include "conv_filter.h"
#include "conv_sinks.h"
#include "conv_sources.h"
#include "launchers.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// dgrad of a 3x3 convolution of stride 1 is one too, with the filter turned by 180 degrees; Winograd's dgrad of stride
// 2 reads it turned as well.
template <class S>
Filter<S> turned(Filter<S> f) {
  f.data += 2 * f.r_stride + 2 * f.s_stride;
  f.r_stride = -f.r_stride;
  f.s_stride = -f.s_stride;
  return f;
}

template <class T, class S = Accumulate<T>>
void dgrad(const ConvArgs& a, const void* weight, const Source<S>& source, TensorSink<T>& sink) {
  const int threads = threads_for_conv(a);
  const Filter<S> filter = Filter<S>::dgrad(static_cast<const S*>(weight), a.shape, a.strides);
  const GatherPlan plan = GatherPlan::dgrad(a.shape);
  if (is_winograd(a)) {
    const Filter<S> turned_filter = turned(filter);
    const S* packed = packed_filter(a, plan, turned_filter);
    winograd_conv<S>(a.algorithm, WinogradPlan::dgrad(a.shape), turned_filter, packed, source, sink, threads);
    return;
  }
  const S* packed = packed_filter(a, plan, filter);
  if (is_narrow(a)) return grouped_conv<S>(plan, filter, packed, source, sink, threads);
  if (!visit_parts<S>(a, [&](auto parts) { line_conv<parts>(plan, filter, packed, source, sink, threads); }))
    gather_conv<S>(plan, filter, packed, source, sink, threads);
}

}  // namespace

void launch_conv_dgrad(const ConvDgradArgs& given) {
  ConvDgradArgs a = given;
  // The gradient of an image is rarely wanted.
  if (a.conv.algorithm == ConvAlgorithm::winograd_stem) a.conv.algorithm = ConvAlgorithm::direct;
  const ConvShape& shape = a.conv.shape;
  visit_dtype(a.conv.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    visit_activation(a.activation.kind, [&](auto activation) {
      DgradSink<T, decltype(activation)::value> sink(a, threads_for_conv(a.conv));
      with_gradient<T>(a.gradient, shape.batch * shape.out_height * shape.out_width, shape.out_channels,
                       [&](const auto& g) { dgrad<T>(a.conv, a.weight, g, sink); });
      sink.gradients(a.bn, a.g_bn);
    });
  });
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
