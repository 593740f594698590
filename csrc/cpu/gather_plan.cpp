#include "conv.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

GatherPlan GatherPlan::forward(const ConvShape& c) {
  Phase phase{0, 0, {}};
  for (int64_t r = 0; r < c.kernel_h; ++r)
    for (int64_t s = 0; s < c.kernel_w; ++s)
      phase.taps.push_back({r * c.dilation_h - c.pad_h, s * c.dilation_w - c.pad_w, r, s});
  return {c.batch, c.height, c.width, c.out_height, c.out_width, c.stride_h, c.stride_w, 1, 1, {phase}};
}

// Pixel h of the input took part in output oh where oh stride = h + pad - r dilation. With h = first + i stride, a tap
// r is in the phase if stride divides first + pad - r dilation, and then oh = i + (first + pad - r dilation) / stride.
GatherPlan GatherPlan::dgrad(const ConvShape& c) {
  GatherPlan plan{c.batch, c.out_height, c.out_width, c.height, c.width, 1, 1, c.stride_h, c.stride_w, {}};
  for (int64_t first_h = 0; first_h < c.stride_h; ++first_h)
    for (int64_t first_w = 0; first_w < c.stride_w; ++first_w) {
      Phase phase{first_h, first_w, {}};
      // Descending, so that taps beside each other read pixels beside each other.
      for (int64_t r = c.kernel_h - 1; r >= 0; --r)
        for (int64_t s = c.kernel_w - 1; s >= 0; --s) {
          const int64_t y = first_h + c.pad_h - r * c.dilation_h, x = first_w + c.pad_w - s * c.dilation_w;
          if (y % c.stride_h == 0 && x % c.stride_w == 0) phase.taps.push_back({y / c.stride_h, x / c.stride_w, r, s});
        }
      plan.phases.push_back(phase);
    }
  return plan;
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
