// What the CUDA kernels take, and their launchers: plain data, no CUDA header.
//
// A launcher picks grid, types and vector width; it allocates nothing and does not synchronise, so that CUDA graphs
// capture it. Pointers are to dense tensors of the `dtype` on the device; vectors are float (double for float64).
// `workspace` has the bytes that the function of that name asks for, for the same sizes, and any content.
#pragma once

#include "../shapes.h"

namespace fused_resnet {

// A cudaError_t; 0 is success.
using LaunchError = int;

const char* launch_error_text(LaunchError error);

// Makes `device` the calling thread's current one, and gives the previous in `previous`.
LaunchError exchange_device(int device, int* previous);

// A stream of the current device, as cudaStream_t.
using Stream = void*;

// mean and biased variance of y over outer and inner
struct ChannelStatisticsArgs {
  DType dtype;
  ChannelView view;
  const void* y;  // [outer, C, inner]
  void* mean;     // [C]
  void* var;      // [C]
  void* workspace;
};

int64_t channel_statistics_workspace(DType dtype, const ChannelView& view);
LaunchError launch_channel_statistics(const ChannelStatisticsArgs&, Stream);

// g = g_y + g_mean / m + 2 g_var (y - mean) / m, with m elements in a channel
struct ChannelStatisticsBackwardArgs {
  DType dtype;
  ChannelView view;
  const void* g_y;     // [outer, C, inner]
  const void* y;       // [outer, C, inner]
  const void* mean;    // [C]
  const void* g_mean;  // [C]
  const void* g_var;   // [C]
  void* g;             // [outer, C, inner]
};

LaunchError launch_channel_statistics_backward(const ChannelStatisticsBackwardArgs&, Stream);

// out = act(norm(x) + residual_norm(residual))
struct BnAddActArgs {
  DType dtype;
  ActivationArgs activation;
  ChannelView view;
  const void* x;  // [outer, C, inner]
  BatchNormArgs bn;
  const void* residual;  // [outer, C, inner] or null
  BatchNormArgs residual_bn;
  void* out;  // [outer, C, inner]
};

LaunchError launch_bn_add_act(const BnAddActArgs&, Stream);

// With p = g_out act'(norm(x) + residual_norm(residual)): the gradients of x and residual, and those of (mean, var,
// weight, bias) of either batch norm.
struct BnAddActBackwardArgs {
  DType dtype;
  ActivationArgs activation;
  ChannelView view;
  const void* g_out;  // [outer, C, inner]
  const void* x;      // [outer, C, inner]
  BatchNormArgs bn;
  const void* residual;  // [outer, C, inner] or null
  BatchNormArgs residual_bn;
  void* g_x;            // [outer, C, inner]
  void* g_bn;           // [4, C], null where there is no bn
  void* g_residual;     // [outer, C, inner], null where there is no residual
  void* g_residual_bn;  // [4, C], null where there is no residual_bn
  void* workspace;
};

int64_t bn_add_act_backward_workspace(DType dtype, const ChannelView& view);
LaunchError launch_bn_add_act_backward(const BnAddActBackwardArgs&, Stream);

// out = max over each window of act(norm(x)), indices = the winner's place in its window
struct BnActMaxPoolArgs {
  DType dtype;
  ActivationArgs activation;
  PoolShape shape;
  bool channels_last;  // or contiguous, as NCHW
  const void* x;       // [N, H, W, C]
  BatchNormArgs bn;
  void* out;         // [N, OH, OW, C]
  uint8_t* indices;  // [N, OH, OW, C]
};

LaunchError launch_bn_act_max_pool(const BnActMaxPoolArgs&, Stream);

struct BnActMaxPoolBackwardArgs {
  DType dtype;
  ActivationArgs activation;
  PoolShape shape;
  bool channels_last;
  const void* g_out;       // [N, OH, OW, C]
  const uint8_t* indices;  // [N, OH, OW, C]
  const void* x;           // [N, H, W, C]
  BatchNormArgs bn;
  void* g_x;   // [N, H, W, C]
  void* g_bn;  // [4, C], null where there is no bn
  void* workspace;
};

int64_t bn_act_max_pool_backward_workspace(DType dtype, const PoolShape& shape, bool channels_last);
LaunchError launch_bn_act_max_pool_backward(const BnActMaxPoolBackwardArgs&, Stream);

}  // namespace fused_resnet
