// fused_resnet._cuda: addresses, sizes and a stream in, nothing else. No torch header, so that one build serves every
// torch release.
#include "bindings.h"

#include "bindings_conv.h"

namespace py = pybind11;
using namespace fused_resnet;

namespace {

using Pool = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,   // N, H, W, C, OH, OW
                        int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;  // kernel, stride, padding

void channel_statistics(const Queue& queue, int dtype, const View& view, Address y, Address mean, Address var,
                        Address workspace) {
  launch_on(queue, "channel_statistics", launch_channel_statistics,
            {DType(dtype), unpack<ChannelView>(view), pointer(y), pointer(mean), pointer(var), pointer(workspace)});
}

void channel_statistics_backward(const Queue& queue, int dtype, const View& view, Address g_y, Address y, Address mean,
                                 Address g_mean, Address g_var, Address g) {
  launch_on(queue, "channel_statistics_backward", launch_channel_statistics_backward,
            {DType(dtype), unpack<ChannelView>(view), pointer(g_y), pointer(y), pointer(mean), pointer(g_mean),
             pointer(g_var), pointer(g)});
}

void bn_add_act(const Queue& queue, int dtype, const Act& act, const View& view, Address x, const Norm& bn,
                Address residual, const Norm& residual_bn, Address out) {
  launch_on(queue, "bn_add_act", launch_bn_add_act,
            {DType(dtype), activation(act), unpack<ChannelView>(view), pointer(x), batch_norm(bn), pointer(residual),
             batch_norm(residual_bn), pointer(out)});
}

void bn_add_act_backward(const Queue& queue, int dtype, const Act& act, const View& view, Address g_out, Address x,
                         const Norm& bn, Address residual, const Norm& residual_bn, Address g_x, Address g_bn,
                         Address g_residual, Address g_residual_bn, Address workspace) {
  launch_on(queue, "bn_add_act_backward", launch_bn_add_act_backward,
            {DType(dtype), activation(act), unpack<ChannelView>(view), pointer(g_out), pointer(x), batch_norm(bn),
             pointer(residual), batch_norm(residual_bn), pointer(g_x), pointer(g_bn), pointer(g_residual),
             pointer(g_residual_bn), pointer(workspace)});
}

void bn_act_max_pool(const Queue& queue, int dtype, const Act& act, const Pool& shape, bool channels_last, Address x,
                     const Norm& bn, Address out, Address indices) {
  launch_on(queue, "bn_act_max_pool", launch_bn_act_max_pool,
            {DType(dtype), activation(act), unpack<PoolShape>(shape), channels_last, pointer(x), batch_norm(bn),
             pointer(out), static_cast<uint8_t*>(pointer(indices))});
}

void bn_act_max_pool_backward(const Queue& queue, int dtype, const Act& act, const Pool& shape, bool channels_last,
                              Address g_out, Address indices, Address x, const Norm& bn, Address g_x, Address g_bn,
                              Address workspace) {
  launch_on(queue, "bn_act_max_pool_backward", launch_bn_act_max_pool_backward,
            {DType(dtype), activation(act), unpack<PoolShape>(shape), channels_last, pointer(g_out),
             static_cast<const uint8_t*>(pointer(indices)), pointer(x), batch_norm(bn), pointer(g_x), pointer(g_bn),
             pointer(workspace)});
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of fused_resnet over raw addresses; see fused_resnet/backends/cuda.";
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("channel_statistics", &channel_statistics, release);
  m.def("channel_statistics_backward", &channel_statistics_backward, release);
  m.def("bn_add_act", &bn_add_act, release);
  m.def("bn_add_act_backward", &bn_add_act_backward, release);
  m.def("bn_act_max_pool", &bn_act_max_pool, release);
  m.def("bn_act_max_pool_backward", &bn_act_max_pool_backward, release);
  // Bytes of workspace that the kernel of that name takes.
  m.def("channel_statistics_workspace", [](int dtype, const View& view) {
    return channel_statistics_workspace(DType(dtype), unpack<ChannelView>(view));
  });
  m.def("bn_add_act_backward_workspace", [](int dtype, const View& view) {
    return bn_add_act_backward_workspace(DType(dtype), unpack<ChannelView>(view));
  });
  m.def("bn_act_max_pool_backward_workspace", [](int dtype, const Pool& shape, bool channels_last) {
    return bn_act_max_pool_backward_workspace(DType(dtype), unpack<PoolShape>(shape), channels_last);
  });
  bind_conv(m);
}
