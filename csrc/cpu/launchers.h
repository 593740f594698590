// The launchers of this instruction set's build; kernels.cpp gathers them in its table.
#pragma once

#include "kernels.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

void launch_channel_stats(const ChannelStatsArgs& a);
void launch_channel_stats_backward(const ChannelStatsBackwardArgs& a);
void launch_bn_add_act(const BnAddActArgs& a);
void launch_bn_add_act_backward(const BnAddActBackwardArgs& a);
void launch_bn_act_max_pool(const BnActMaxPoolArgs& a);
void launch_bn_act_max_pool_backward(const BnActMaxPoolBackwardArgs& a);

const Kernels& kernels();

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
