// fused_resnet._cpu: pointers, sizes and a thread count in, nothing else. No torch header, so that one build serves
// every torch release.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "dlpack.h"
#include "isa.h"
#include "prepared_convs.h"
#include "tensor_memory.h"
#include "training_block.h"
#include "workspace.h"

namespace py = pybind11;
using namespace fused_resnet;

namespace {

using Address = std::uintptr_t;                                                 // of a tensor's data; 0 for none
using View = std::tuple<int64_t, int64_t, int64_t>;                             // outer, channels, inner
using Norm = std::tuple<Address, Address, Address, Address, double>;            // mean, var, weight, bias, eps
using Act = std::tuple<int, double>;                                            // number, negative_slope
using Pool = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,   // N, H, W, C, OH, OW
                        int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;  // kernel, stride, padding

using Shape = std::array<int64_t, 16>;                                     // the fields of ConvShape
using Strides = std::tuple<int64_t, int64_t, int64_t, int64_t>;            // the fields of FilterStrides
using Conv = std::tuple<int, int, Shape, Strides, int>;                    // dtype, algorithm, ..., threads
using Gradient = std::tuple<Address, Address, Address, Address, Address>;  // the fields of ConvGradient
// conv, activation, weight, packed, bias, bn; pool, x, residual, fingerprint: the fields of PreparedLayer
using Layer = std::tuple<Conv, Act, Address, Address, Address, Norm, Pool, int, int, uint64_t>;
using TrainedLayer = std::tuple<Conv, int, Act, double, double, int>;  // the fields of TrainingLayer
using Addresses = std::vector<Address>;

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

ConvArgs conv_args(const Conv& c) {
  const auto& [dtype, algorithm, f, strides, threads] = c;
  const ConvShape shape = std::apply([](auto... field) { return ConvShape{field...}; }, f);
  return {DType(dtype), ConvAlgorithm(algorithm), shape, unpack<FilterStrides>(strides), threads};
}

ConvGradient conv_gradient(const Gradient& g) {
  const auto [g_y, y, y_mean, g_mean, g_var] = g;
  return {pointer(g_y), pointer(y), pointer(y_mean), pointer(g_mean), pointer(g_var), {}};
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
                                        batch_norm(residual_bn), nullptr, pointer(g_x), pointer(g_bn),
                                        pointer(g_residual), pointer(g_residual_bn)});
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

int64_t conv_packed_size(const Conv& conv) {
  return active_kernels().conv_packed_size(conv_args(conv));
}

void conv_pack(const Conv& conv, Address weight, Address packed) {
  active_kernels().conv_pack({conv_args(conv), pointer(weight), pointer(packed)});
}

void conv_forward(const Conv& conv, const Act& act, Address x, const Norm& bn, Address weight, Address bias, Address y,
                  Address mean, Address var) {
  active_kernels().conv_forward({conv_args(conv), activation(act), pointer(x), batch_norm(bn), pointer(weight),
                                 pointer(bias), pointer(y), pointer(mean), pointer(var)});
}

void conv_dgrad(const Conv& conv, const Act& act, const Gradient& g, Address x, const Norm& bn, Address weight,
                Address g_x, Address g_bn) {
  active_kernels().conv_dgrad({conv_args(conv), activation(act), conv_gradient(g), pointer(x), batch_norm(bn),
                               pointer(weight), nullptr, pointer(g_x), pointer(g_bn)});
}

void conv_wgrad(const Conv& conv, const Act& act, const Gradient& g, Address x, const Norm& bn, Address g_weight) {
  active_kernels().conv_wgrad(
      {conv_args(conv), activation(act), conv_gradient(g), pointer(x), batch_norm(bn), pointer(g_weight)});
}

void conv_bn_add_act(const Conv& conv, const Act& act, Address x, Address weight, Address packed, Address bias,
                     const Norm& bn, Address residual, Address out) {
  active_kernels().conv_bn_add_act({conv_args(conv), activation(act), pointer(x), pointer(weight), pointer(packed),
                                    pointer(bias), batch_norm(bn), pointer(residual), pointer(out)});
}

uint64_t fingerprint(const Conv& conv, Address weight) {
  return filter_fingerprint(conv_args(conv), pointer(weight));
}

PreparedConvs prepared_convs(size_t given, const std::vector<Layer>& layers) {
  std::vector<PreparedLayer> prepared;
  for (const auto& [conv, act, weight, packed, bias, bn, pool, x, residual, fingerprint] : layers)
    prepared.push_back({{conv_args(conv), activation(act), nullptr, pointer(weight), pointer(packed), pointer(bias),
                         batch_norm(bn), nullptr, nullptr},
                        unpack<PoolShape>(pool),
                        x,
                        residual,
                        fingerprint});
  return {given, std::move(prepared)};
}

bool run_prepared(const PreparedConvs& convs, const Addresses& given, Address out) {
  std::vector<const void*> values;
  for (const Address address : given) values.push_back(pointer(address));
  return convs.run(values, pointer(out));
}

TrainingBlock training_block(const std::vector<TrainedLayer>& layers, int residual) {
  std::vector<TrainingLayer> made;
  for (const auto& [conv, weight_gradient, act, eps, momentum, x] : layers)
    made.push_back({conv_args(conv), ConvAlgorithm(weight_gradient), activation(act), eps, momentum, x});
  return {std::move(made), residual};
}

std::vector<void*> pointers(const Addresses& addresses) {
  std::vector<void*> made;
  for (const Address address : addresses) made.push_back(pointer(address));
  return made;
}

BlockState block_state(Address x, const Addresses& parameters, const Addresses& raw, Address statistics) {
  return {pointer(x), pointers(parameters), pointers(raw), static_cast<char*>(pointer(statistics))};
}

void forward_block(const TrainingBlock& block, Address x, const Addresses& parameters, const Addresses& running,
                   const Addresses& raw, Address statistics, Address out) {
  block.forward(block_state(x, parameters, raw, statistics), pointers(running), pointer(out));
}

void backward_block(const TrainingBlock& block, Address g_out, Address x, const Addresses& parameters,
                    const Addresses& raw, Address statistics, Address memory, Address g_x, const Addresses& g_weight,
                    Address g_bn) {
  block.backward(pointer(g_out), block_state(x, parameters, raw, statistics), static_cast<char*>(pointer(memory)),
                 {pointer(g_x), pointers(g_weight), static_cast<char*>(pointer(g_bn))});
}

double multiply_add_peak(int dtype, int threads, double seconds) {
  return active_kernels().multiply_add_peak(DType(dtype), threads, seconds);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of fused_resnet over raw addresses; see fused_resnet/backends/cpu.py.";
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("isa", [] { return active_kernels().isa; }, "Name of the instruction set in use.");
  m.def(
      "has_dot_products", [] { return active_kernels().has_dot_products(); },
      "Whether it multiplies bfloat16 numbers in pairs, twice as many at a time as floats.");
  m.def("set_isa", &set_isa, py::arg("name"), "Chooses an instruction set of supported_isas().");
  m.def("supported_isas", &supported_isas, "Instruction sets built that this processor has, widest first.");
  m.def("bn_add_act", &bn_add_act, release);
  m.def("bn_add_act_backward", &bn_add_act_backward, release);
  m.def("bn_act_max_pool", &bn_act_max_pool, release);
  m.def("bn_act_max_pool_backward", &bn_act_max_pool_backward, release);
  m.def("conv_packed_size", &conv_packed_size, "Elements of a packed filter.");
  m.def("conv_pack", &conv_pack, release);
  m.def("conv_forward", &conv_forward, release);
  m.def("conv_dgrad", &conv_dgrad, release);
  m.def("conv_wgrad", &conv_wgrad, release);
  m.def("conv_bn_add_act", &conv_bn_add_act, release);
  m.def("filter_fingerprint", &fingerprint, "Changes with the filter, even where its version does not.");
  py::class_<PreparedConvs>(m, "PreparedConvs", "Convolutions one after another, ready to be called again and again.")
      .def(py::init(&prepared_convs), py::arg("given"), py::arg("layers"))
      .def("run", &run_prepared, release, "False, with nothing done, where a filter has changed since it was packed.");
  py::class_<TrainingBlock>(m, "TrainingBlock", "A residual block in training, ready to be called again and again.")
      .def(py::init(&training_block), py::arg("layers"), py::arg("residual"))
      .def("forward", &forward_block, release)
      .def("backward", &backward_block, release)
      .def_property_readonly("is_current", &TrainingBlock::is_current, "Whether the instruction set is the same still.")
      .def_property_readonly("backward_bytes", &TrainingBlock::backward_bytes);
  m.def("multiply_add_peak", &multiply_add_peak, py::arg("dtype"), py::arg("threads"), py::arg("seconds"), release,
        "Floating-point operations a second that this many threads can do at most, as measured.");
  m.def("workspace_bytes", &workspace_bytes, "Working memory that convolutions hold for the calling thread.");
  m.def("free_workspace", &free_workspace, "Gives it back.");
  m.def("empty_tensor", &empty_tensor, "A DLPack capsule of code, bits, shape, strides; None where memory is short.");
  m.def(
      "tensor_memory", [] { return std::make_pair(tensor_memory().used, tensor_memory().kept); },
      "Bytes in tensors that live, and kept of those that were freed.");
  m.def("free_kept_memory", &free_kept_memory, "Gives what was kept back to the system.");
  m.def(
      "set_memory_profiler",
      [](Address is_enabled, Address report) {
        set_memory_profiler(
            {reinterpret_cast<bool (*)()>(is_enabled), reinterpret_cast<decltype(MemoryProfiler::report)>(report)});
      },
      "Addresses of c10::memoryProfilingEnabled and c10::reportMemoryUsageToProfiler.");
}
