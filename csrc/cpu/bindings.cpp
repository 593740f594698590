// fused_resnet._cpu: pointers, sizes and a thread count in, nothing else. No torch header, so that one build serves
// every torch release.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>

#include "isa.h"

namespace py = pybind11;
using namespace fused_resnet;

namespace {

using Address = std::uintptr_t;                                                 // of a tensor's data; 0 for none
using View = std::tuple<int64_t, int64_t, int64_t>;                             // outer, channels, inner
using Norm = std::tuple<Address, Address, Address, Address, double>;            // mean, var, weight, bias, eps
using Act = std::tuple<int, double>;                                            // number, negative_slope
using Pool = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,   // N, H, W, C, OH, OW
                        int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;  // kernel, stride, padding

void* pointer(Address address) {
  return reinterpret_cast<void*>(address);
}

template <class Plain, class Tuple>
Plain unpack(const Tuple& fields) {
  return std::apply([](auto... field) { return Plain{field...}; }, fields);
}

BatchNormArgs batch_norm(const Norm& n) {
  const auto [mean, var, weight, bias, eps] = n;
  return {pointer(mean), pointer(var), pointer(weight), pointer(bias), eps};
}

ActivationArgs activation(const Act& a) {
  return {static_cast<Activation>(std::get<0>(a)), std::get<1>(a)};
}

void channel_stats(int dtype, const View& view, int threads, Address x, Address mean, Address var) {
  active_kernels().channel_stats(
      {DType(dtype), unpack<ChannelView>(view), threads, pointer(x), pointer(mean), pointer(var)});
}

void channel_stats_backward(int dtype, const View& view, int threads, Address g_y, Address y, Address y_mean,
                            Address g_mean, Address g_var, Address g) {
  active_kernels().channel_stats_backward({DType(dtype), unpack<ChannelView>(view), threads, pointer(g_y), pointer(y),
                                           pointer(y_mean), pointer(g_mean), pointer(g_var), pointer(g)});
}

void bn_add_act(int dtype, const Act& act, const View& view, int threads, Address x, const Norm& bn, Address residual,
                const Norm& residual_bn, Address out) {
  active_kernels().bn_add_act({DType(dtype), activation(act), unpack<ChannelView>(view), threads, pointer(x),
                               batch_norm(bn), pointer(residual), batch_norm(residual_bn), pointer(out)});
}

void bn_add_act_backward(int dtype, const Act& act, const View& view, int threads, Address g_out, Address x,
                         const Norm& bn, Address residual, const Norm& residual_bn, Address g_x, Address g_bn,
                         Address g_residual, Address g_residual_bn) {
  active_kernels().bn_add_act_backward({DType(dtype), activation(act), unpack<ChannelView>(view), threads,
                                        pointer(g_out), pointer(x), batch_norm(bn), pointer(residual),
                                        batch_norm(residual_bn), pointer(g_x), pointer(g_bn), pointer(g_residual),
                                        pointer(g_residual_bn)});
}

void bn_act_max_pool(int dtype, const Act& act, const Pool& shape, int threads, Address x, const Norm& bn, Address out,
                     Address indices) {
  active_kernels().bn_act_max_pool({DType(dtype), activation(act), unpack<PoolShape>(shape), threads, pointer(x),
                                    batch_norm(bn), pointer(out), static_cast<uint8_t*>(pointer(indices))});
}

void bn_act_max_pool_backward(int dtype, const Act& act, const Pool& shape, int threads, Address g_out, Address indices,
                              Address x, const Norm& bn, Address g_x, Address g_bn) {
  active_kernels().bn_act_max_pool_backward({DType(dtype), activation(act), unpack<PoolShape>(shape), threads,
                                             pointer(g_out), static_cast<const uint8_t*>(pointer(indices)), pointer(x),
                                             batch_norm(bn), pointer(g_x), pointer(g_bn)});
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of fused_resnet over raw addresses; see fused_resnet/backends/cpu.py.";
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("isa", [] { return active_kernels().isa; }, "Name of the instruction set in use.");
  m.def("set_isa", &set_isa, py::arg("name"), "Chooses an instruction set of supported_isas().");
  m.def("supported_isas", &supported_isas, "Instruction sets built that this processor has, widest first.");
  m.def("channel_stats", &channel_stats, release);
  m.def("channel_stats_backward", &channel_stats_backward, release);
  m.def("bn_add_act", &bn_add_act, release);
  m.def("bn_add_act_backward", &bn_add_act_backward, release);
  m.def("bn_act_max_pool", &bn_act_max_pool, release);
  m.def("bn_act_max_pool_backward", &bn_act_max_pool_backward, release);
}
