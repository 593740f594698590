// The convolution's forward: norm and activation while reading, statistics while storing.
#include "conv_filter.h"
#include "conv_sinks.h"
#include "conv_sources.h"
#include "launchers.h"
#include "pointwise.h"
#include "space_to_depth.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// `packed` is null where the filter is still to be packed.
template <class T, class S = Accumulate<T>>
void convolve(const ConvArgs& a, int threads, const void* weight, const void* packed, const Source<S>& source,
              TensorSink<T>& sink) {
  const Filter<S> filter = Filter<S>::forward(static_cast<const S*>(weight), a.shape, a.strides);
  const GatherPlan plan = GatherPlan::forward(a.shape);
  const S* ready = packed ? static_cast<const S*>(packed) : packed_filter(a, plan, filter);
  if (visit_parts<S>(a, [&](auto parts) { line_conv<parts>(plan, filter, ready, source, sink, threads); })) return;
  if (is_narrow(a))
    grouped_conv<S>(plan, filter, ready, source, sink, threads);
  else if (is_winograd(a))
    winograd_conv<S>(a.algorithm, WinogradPlan::forward(a.shape), filter, ready, source, sink, threads);
  else
    gather_conv<S>(plan, filter, ready, source, sink, threads);
}

template <class T, class S = Accumulate<T>>
void convolve(const ConvArgs& a, const void* weight, const void* packed, const Source<S>& source, TensorSink<T>& sink) {
  const int threads = threads_for_conv(a);
  if (!is_space_to_depth(a)) return convolve<T>(a, threads, weight, packed, source, sink);
  const SpaceToDepthFilter<S> filter(a);
  if (!packed) filter.read(static_cast<const S*>(weight));
  convolve<T>(space_to_depth(a), threads, filter.data(), packed, SpaceToDepthSource<S>(a.shape, source), sink);
}

template <class T, class S = Accumulate<T>>
void infer(const ConvBnAddActArgs& a, const Source<S>& source, TensorSink<T>& sink) {
  if (!is_pointwise_conv(a.conv.shape) || float_parts(a.conv))
    return convolve<T>(a.conv, a.weight, a.packed, source, sink);
  const Filter<S> filter = Filter<S>::forward(static_cast<const S*>(a.weight), a.conv.shape, a.conv.strides);
  const S* packed =
      a.packed ? static_cast<const S*>(a.packed) : packed_filter(a.conv, GatherPlan::forward(a.conv.shape), filter);
  pointwise_conv<S>(a.conv.shape, packed, source, sink, threads_for_conv(a.conv));
}

template <class F>
void visit_accumulate(DType dtype, const F& f) {
  dtype == DType::float64 ? f(TypeTag<double>{}) : f(TypeTag<float>{});
}

}  // namespace

void launch_conv_forward(const ConvForwardArgs& a) {
  visit_dtype(a.conv.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    ForwardSink<T> sink(a, threads_for_conv(a.conv));
    with_activated<T>(a.x, a.conv.shape.channels, a.bn, a.activation,
                      [&](const auto& source) { convolve<T>(a.conv, a.weight, nullptr, source, sink); });
    sink.statistics(a.mean, a.var);
  });
}

void launch_conv_bn_add_act(const ConvBnAddActArgs& a) {
  visit_dtype(a.conv.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    visit_activation(a.activation.kind, [&](auto activation) {
      InferenceSink<T, decltype(activation)::value> sink(a);
      with_activated<T>(a.x, a.conv.shape.channels, {}, {Activation::identity, 0},
                        [&](const auto& source) { infer<T>(a, source, sink); });
    });
  });
}

int64_t conv_packed_size(const ConvArgs& given) {
  const ConvArgs a = is_space_to_depth(given) ? space_to_depth(given) : given;
  int64_t size = 0;
  visit_accumulate(a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    size = packed_size(a, GatherPlan::forward(a.shape), Filter<S>::forward(nullptr, a.shape, a.strides));
  });
  return size;
}

void launch_conv_pack(const ConvPackArgs& a) {
  visit_accumulate(a.conv.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    const auto pack_as = [&](const ConvArgs& conv, const S* weight) {
      pack(conv, GatherPlan::forward(conv.shape), Filter<S>::forward(weight, conv.shape, conv.strides),
           static_cast<S*>(a.packed));
    };
    const auto* weight = static_cast<const S*>(a.weight);
    if (!is_space_to_depth(a.conv)) return pack_as(a.conv, weight);
    const SpaceToDepthFilter<S> filter(a.conv);
    filter.read(weight);
    pack_as(space_to_depth(a.conv), filter.data());
  });
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
