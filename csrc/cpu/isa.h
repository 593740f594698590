// The instruction sets this module was built for, and the choice among those the processor has.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fused_resnet {

// Names of the builds this processor can run, widest first; "baseline" is always the last.
std::vector<std::string> supported_isas();

// The kernels in use: those of FUSED_RESNET_ISA where that is set at the first call, else the widest.
const Kernels& active_kernels();

// Chooses by name; throws std::invalid_argument, with the names to choose from, for one that cannot run here.
void set_isa(const std::string& name);

}  // namespace fused_resnet
