// The part of the module fused_resnet._cuda that bindings_conv.cpp defines.
#pragma once

#include <pybind11/pybind11.h>

namespace fused_resnet {

void bind_conv(pybind11::module_& m);

}  // namespace fused_resnet
