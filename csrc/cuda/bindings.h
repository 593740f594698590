// What the bindings of all kernel families share: addresses, plain structs, and launches that raise.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "launchers.h"

namespace fused_resnet {

using Address = std::uintptr_t;                                       // of a tensor's data; 0 for none
using Queue = std::tuple<int, Address>;                               // device index and its stream
using View = std::tuple<int64_t, int64_t, int64_t>;                   // outer, channels, inner
using Norm = std::tuple<Address, Address, Address, Address, double>;  // mean, var, weight, bias, eps
using Act = std::tuple<int, double>;                                  // number, negative_slope

inline void* pointer(Address address) {
  return reinterpret_cast<void*>(address);
}

template <class Plain, class Tuple>
Plain unpack(const Tuple& fields) {
  return std::apply([](auto... field) { return Plain{field...}; }, fields);
}

inline BatchNormArgs batch_norm(const Norm& n) {
  const auto [mean, var, weight, bias, eps] = n;
  return {pointer(mean), pointer(var), pointer(weight), pointer(bias), eps};
}

inline ActivationArgs activation(const Act& a) {
  return {static_cast<Activation>(std::get<0>(a)), std::get<1>(a)};
}

inline void raise_on(LaunchError error, const char* kernel) {
  if (error) throw std::runtime_error(std::string(kernel) + ": " + launch_error_text(error));
}

// Runs launch(arguments, stream) on the queue's device, and raises what it returns under the kernel's name.
template <class Args>
void launch_on(const Queue& queue, const char* kernel, LaunchError (*launch)(const Args&, Stream), const Args& args) {
  const auto [device, stream] = queue;
  int previous = device;
  raise_on(exchange_device(device, &previous), kernel);
  const LaunchError error = launch(args, pointer(stream));
  int ignored;
  const LaunchError back = exchange_device(previous, &ignored);
  raise_on(error, kernel);
  raise_on(back, kernel);
}

}  // namespace fused_resnet
