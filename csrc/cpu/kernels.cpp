// The table of this instruction set's build.
#include "launchers.h"
#include "tile_registers.h"

#define FUSED_RESNET_STRING_OF(x) #x
#define FUSED_RESNET_STRING(x) FUSED_RESNET_STRING_OF(x)

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

const Kernels& kernels() {
  static constexpr Kernels table{
      FUSED_RESNET_STRING(FUSED_RESNET_TARGET),
      launch_bn_add_act,
      launch_bn_add_act_backward,
      launch_bn_act_max_pool,
      launch_bn_act_max_pool_backward,
      launch_max_pool,
      conv_packed_size,
      launch_conv_pack,
      launch_conv_forward,
      launch_conv_dgrad,
      launch_conv_wgrad,
      launch_conv_bn_add_act,
      multiply_add_peak,
      [] { return has_dot_products; },
  };
  return table;
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
