// The fused convolutions of fused_resnet._cuda.
#include "bindings_conv.h"

#include <array>

#include "bindings.h"
#include "conv_launchers.h"

namespace py = pybind11;

namespace fused_resnet {
namespace {

using Shape = std::array<int64_t, 16>;                                     // in the order of ConvShape
using Call = std::tuple<int, bool, int, Shape>;                            // dtype, allow_tf32, tile, shape
using Gradient = std::tuple<Address, Address, Address, Address, Address>;  // g_y, y, y_mean, g_mean, g_var

ConvShape conv_shape(const Shape& shape) {
  return unpack<ConvShape>(shape);
}

ConvCall conv_call(const Call& call) {
  const auto& [dtype, allow_tf32, tile, shape] = call;
  return {DType(dtype), allow_tf32, ConvTile(tile), conv_shape(shape)};
}

ConvGradient conv_gradient(const Gradient& g) {
  return std::apply([](auto... address) { return ConvGradient{pointer(address)...}; }, g);
}

void conv_forward(const Queue& queue, const Call& call, const Act& act, Address x, const Norm& bn, Address weight,
                  Address bias, Address y, Address mean, Address var, Address workspace) {
  launch_on(queue, "conv_forward", launch_conv_forward,
            {conv_call(call), activation(act), pointer(x), batch_norm(bn), pointer(weight), pointer(bias), pointer(y),
             pointer(mean), pointer(var), pointer(workspace)});
}

void conv_bn_add_act(const Queue& queue, const Call& call, const Act& act, Address x, Address weight, Address bias,
                     const Norm& bn, Address residual, Address out) {
  launch_on(queue, "conv_bn_add_act", launch_conv_bn_add_act,
            {conv_call(call), activation(act), pointer(x), pointer(weight), pointer(bias), batch_norm(bn),
             pointer(residual), pointer(out)});
}

void conv_dgrad(const Queue& queue, const Call& call, const Act& act, const Gradient& g, Address x, const Norm& bn,
                Address weight, Address g_x, Address g_bn, Address workspace) {
  launch_on(queue, "conv_dgrad", launch_conv_dgrad,
            {conv_call(call), activation(act), conv_gradient(g), pointer(x), batch_norm(bn), pointer(weight),
             pointer(g_x), pointer(g_bn), pointer(workspace)});
}

void conv_wgrad(const Queue& queue, const Call& call, const Act& act, const Gradient& g, Address x, const Norm& bn,
                Address g_weight, Address workspace) {
  launch_on(queue, "conv_wgrad", launch_conv_wgrad,
            {conv_call(call), activation(act), conv_gradient(g), pointer(x), batch_norm(bn), pointer(g_weight),
             pointer(workspace)});
}

}  // namespace

void bind_conv(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def(
      "conv_forward_workspace", [](const Shape& shape) { return conv_forward_workspace(conv_shape(shape)); }, "Bytes.");
  m.def("conv_dgrad_workspace", [](const Shape& shape) { return conv_dgrad_workspace(conv_shape(shape)); }, "Bytes.");
  m.def("conv_wgrad_workspace", [](const Shape& shape) { return conv_wgrad_workspace(conv_shape(shape)); }, "Bytes.");
  m.def("conv_forward", &conv_forward, release);
  m.def("conv_bn_add_act", &conv_bn_add_act, release);
  m.def("conv_dgrad", &conv_dgrad, release);
  m.def("conv_wgrad", &conv_wgrad, release);
}

}  // namespace fused_resnet
