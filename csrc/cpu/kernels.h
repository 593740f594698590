// What one instruction set's build of the CPU kernels offers, and what each kernel takes.
//
// Pointers are to dense tensors of the `dtype`; statistics and sums are float (double for float64).
#pragma once

#include "../shapes.h"

namespace fused_resnet {

// mean and biased variance of each channel; zeros where there is no element.
struct ChannelStatsArgs {
  DType dtype;
  ChannelView view;
  int threads;
  const void* x;  // [outer, C, inner]
  void* mean;     // [C]
  void* var;      // [C]
};

// g = g_y + g_mean / m + 2 g_var (y - y_mean) / m
struct ChannelStatsBackwardArgs {
  DType dtype;
  ChannelView view;
  int threads;
  const void* g_y;     // [outer, C, inner]
  const void* y;       // [outer, C, inner]
  const void* y_mean;  // [C]
  const void* g_mean;  // [C]
  const void* g_var;   // [C]
  void* g;             // [outer, C, inner]
};

// out = act(norm(x) + residual_norm(residual))
struct BnAddActArgs {
  DType dtype;
  ActivationArgs activation;
  ChannelView view;
  int threads;
  const void* x;  // [outer, C, inner]
  BatchNormArgs bn;
  const void* residual;  // [outer, C, inner] or null
  BatchNormArgs residual_bn;
  void* out;  // [outer, C, inner], may be x
};

// With p = g_out act'(norm(x) + residual_norm(residual)): the gradients of x and residual, and those of (mean, var,
// weight, bias) of either batch norm.
struct BnAddActBackwardArgs {
  DType dtype;
  ActivationArgs activation;
  ChannelView view;
  int threads;
  const void* g_out;  // [outer, C, inner]
  const void* x;      // [outer, C, inner]
  BatchNormArgs bn;
  const void* residual;  // [outer, C, inner] or null
  BatchNormArgs residual_bn;
  void* g_x;            // [outer, C, inner], may be g_out
  void* g_bn;           // [4, C] or null
  void* g_residual;     // [outer, C, inner], null where there is no residual
  void* g_residual_bn;  // [4, C] or null
};

// out = max over each window of act(norm(x)), indices = the winner's place in its window
struct BnActMaxPoolArgs {
  DType dtype;
  ActivationArgs activation;
  PoolShape shape;
  int threads;
  const void* x;  // [N, H, W, C]
  BatchNormArgs bn;
  void* out;         // [N, OH, OW, C]
  uint8_t* indices;  // [N, OH, OW, C]
};

struct BnActMaxPoolBackwardArgs {
  DType dtype;
  ActivationArgs activation;
  PoolShape shape;
  int threads;
  const void* g_out;       // [N, OH, OW, C]
  const uint8_t* indices;  // [N, OH, OW, C]
  const void* x;           // [N, H, W, C]
  BatchNormArgs bn;
  void* g_x;   // [N, H, W, C]
  void* g_bn;  // [4, C] or null
};

struct Kernels {
  const char* isa;
  void (*channel_stats)(const ChannelStatsArgs&);
  void (*channel_stats_backward)(const ChannelStatsBackwardArgs&);
  void (*bn_add_act)(const BnAddActArgs&);
  void (*bn_add_act_backward)(const BnAddActBackwardArgs&);
  void (*bn_act_max_pool)(const BnActMaxPoolArgs&);
  void (*bn_act_max_pool_backward)(const BnActMaxPoolBackwardArgs&);
};

}  // namespace fused_resnet
