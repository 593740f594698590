// The launchers of this instruction set's build; kernels.cpp gathers them in its table.
#pragma once

#include "kernels.h"

// Passes over tensors multiply no matrices: a build with tile registers takes those of the build without.
#ifndef FUSED_RESNET_PASSES
#define FUSED_RESNET_PASSES FUSED_RESNET_TARGET
#endif

namespace fused_resnet {
inline namespace FUSED_RESNET_PASSES {

void launch_bn_add_act(const BnAddActArgs& a);
void launch_bn_add_act_backward(const BnAddActBackwardArgs& a);
void launch_bn_act_max_pool(const BnActMaxPoolArgs& a);
void launch_bn_act_max_pool_backward(const BnActMaxPoolBackwardArgs& a);
void launch_max_pool(const MaxPoolArgs& a);

}  // namespace FUSED_RESNET_PASSES

inline namespace FUSED_RESNET_TARGET {

int64_t conv_packed_size(const ConvArgs& a);
void launch_conv_pack(const ConvPackArgs& a);
void launch_conv_forward(const ConvForwardArgs& a);
void launch_conv_dgrad(const ConvDgradArgs& a);
void launch_conv_wgrad(const ConvWgradArgs& a);
void launch_conv_bn_add_act(const ConvBnAddActArgs& a);

// Multiplications and additions a second, of registers full of numbers, on this many threads.
double multiply_add_peak(DType dtype, int threads, double seconds);

const Kernels& kernels();

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
