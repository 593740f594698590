// fused_resnet._cuda: addresses, sizes and a stream in, nothing else. No torch header, so that one build serves every
// torch release.
#include "bindings.h"
#include "bindings_conv.h"

namespace py = pybind11;
using namespace fused_resnet;

namespace {

void channel_statistics(const Queue& queue, int dtype, const View& view, Address y, Address mean, Address var,
                        Address workspace) {
  launch_on(queue, "channel_statistics", launch_channel_statistics,
            {DType(dtype), unpack<ChannelView>(view), pointer(y), pointer(mean), pointer(var), pointer(workspace)});
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of fused_resnet over raw addresses; see fused_resnet/backends/cuda.";
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("channel_statistics_workspace", [](int dtype, const View& view) {
    return channel_statistics_workspace(DType(dtype), unpack<ChannelView>(view));
  });
  m.def("channel_statistics", &channel_statistics, release);
  bind_conv(m);
}
