// The fused convolutions on CUDA, as the binding calls them: like launchers.h, in a header of its own.
//
// Tensors are channels_last of the `dtype`, filters [K, R, S, C / groups] of the same; vectors are float. A launcher
// returns cudaErrorInvalidValue for sizes beyond the 32 bits that the kernels count pixels and blocks in, and
// cudaErrorNotSupported for float64.
#pragma once

#include "launchers.h"

namespace fused_resnet {

// Rows and columns of the output that a block computes: 64 x 64, or 128 x 128 where there is work for a whole device. A
// choice by hand is for tests and measurements. The numbering is that of TILES in
// fused_resnet/backends/cuda/conv_algorithm.py.
enum class ConvTile : int { automatic, small, large };

struct ConvCall {
  DType dtype;
  bool allow_tf32;  // float32 on tensor cores, rounded to 10 bits of mantissa
  ConvTile tile;
  ConvShape shape;
};

// y = conv(act(norm(x)), weight) + bias, with mean and biased variance of y.
struct ConvForwardArgs {
  ConvCall call;
  ActivationArgs activation;
  const void* x;  // [N, H, W, C]
  BatchNormArgs bn;
  const void* weight;  // [K, R, S, C / groups]
  const void* bias;    // [K] or null
  void* y;             // [N, OH, OW, K]
  void* mean;          // [K], null: no statistics
  void* var;           // [K]
  void* workspace;
};

int64_t conv_forward_workspace(const ConvShape& shape);
LaunchError launch_conv_forward(const ConvForwardArgs&, Stream);

// out = act(norm(conv(x, weight) + bias) + residual)
struct ConvBnAddActArgs {
  ConvCall call;
  ActivationArgs activation;
  const void* x;       // [N, H, W, C]
  const void* weight;  // [K, R, S, C / groups]
  const void* bias;    // [K] or null
  BatchNormArgs bn;
  const void* residual;  // [N, OH, OW, K] or null
  void* out;             // [N, OH, OW, K]
};

LaunchError launch_conv_bn_add_act(const ConvBnAddActArgs&, Stream);

// g = g_y + g_mean / m + 2 g_var (y - y_mean) / m; g_mean null: g_y alone.
struct ConvGradient {
  const void* g_y;     // [N, OH, OW, K]
  const void* y;       // [N, OH, OW, K]
  const void* y_mean;  // [K]
  const void* g_mean;  // [K]
  const void* g_var;   // [K]
};

// With p = dgrad(g, weight) act'(norm(x)): the gradients of x and of (mean, var, weight, bias) of its batch norm.
struct ConvDgradArgs {
  ConvCall call;
  ActivationArgs activation;
  ConvGradient gradient;
  const void* x;  // [N, H, W, C]
  BatchNormArgs bn;
  const void* weight;  // [K, R, S, C / groups]
  void* g_x;           // [N, H, W, C]
  void* g_bn;          // [4, C], null where there is no batch norm
  void* workspace;
};

int64_t conv_dgrad_workspace(const ConvShape& shape);
LaunchError launch_conv_dgrad(const ConvDgradArgs&, Stream);

// g_weight = wgrad(act(norm(x)), g)
struct ConvWgradArgs {
  ConvCall call;
  ActivationArgs activation;
  ConvGradient gradient;
  const void* x;  // [N, H, W, C]
  BatchNormArgs bn;
  void* g_weight;  // [K, R, S, C / groups]
  void* workspace;
};

int64_t conv_wgrad_workspace(const ConvShape& shape);
LaunchError launch_conv_wgrad(const ConvWgradArgs&, Stream);

}  // namespace fused_resnet
