// What one instruction set's build of the CPU kernels offers, and what each kernel takes.
//
// Pointers are to dense tensors of the `dtype`; statistics and sums are float (double for float64).
#pragma once

#include "../shapes.h"

namespace fused_resnet {

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
  void* out;  // [outer, C, inner]
};

// With p = g_out act'(norm(x) + residual_norm(residual)): the gradients of x and residual, and those of (mean, var,
// weight, bias) of either batch norm. Where p is asked for, it is written instead of the former.
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
  void* p;              // [outer, C, inner] or null
  void* g_x;            // [outer, C, inner]
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

// out = max over each window of x, for inference: without indices
struct MaxPoolArgs {
  DType dtype;
  PoolShape shape;
  int threads;
  const void* x;  // [N, H, W, C]
  void* out;      // [N, OH, OW, C]
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

// What all passes of a convolution share. Filters are float (double for float64); a packed filter is what conv_pack
// wrote, null where it is still to be packed.
struct ConvArgs {
  DType dtype;
  ConvAlgorithm algorithm;
  ConvShape shape;
  FilterStrides strides;
  int threads;
};

// The filter as forward multiplies by it, ready to be used again and again.
struct ConvPackArgs {
  ConvArgs conv;
  const void* weight;  // [K, C / groups, R, S]
  void* packed;        // [packed_size] float or double
};

// y = conv(act(norm(x)), weight) + bias, with mean and biased variance of y.
struct ConvForwardArgs {
  ConvArgs conv;
  ActivationArgs activation;
  const void* x;  // [N, H, W, C]
  BatchNormArgs bn;
  const void* weight;  // [K, C / groups, R, S]
  const void* bias;    // [K] or null
  void* y;             // [N, OH, OW, K]
  void* mean;          // [K], null: no statistics
  void* var;           // [K]
};

// g = scale g_y + g_mean / m + 2 g_var (y - y_mean) / m; g_mean null: g_y alone.
struct ConvGradient {
  const void* g_y;     // [N, OH, OW, K]
  const void* y;       // [N, OH, OW, K]
  const void* y_mean;  // [K]
  const void* g_mean;  // [K]
  const void* g_var;   // [K]
  BatchNormArgs bn;    // of y, whose scale, weight / sqrt(var + eps), is to be taken; without a mean it is 1
};

// With p = dgrad(g, weight) act'(norm(x)): the gradients of x and of (mean, var, weight, bias) of its batch norm. Where
// x is read by others too, the sum of their gradients comes in as `addend`.
struct ConvDgradArgs {
  ConvArgs conv;
  ActivationArgs activation;
  ConvGradient gradient;
  const void* x;  // [N, H, W, C]
  BatchNormArgs bn;
  const void* weight;  // [K, C / groups, R, S]
  const void* addend;  // [N, H, W, C], part of g_x, or null; may be g_x itself
  void* g_x;           // [N, H, W, C]
  void* g_bn;          // [4, C] or null
};

// g_weight = wgrad(act(norm(x)), g)
struct ConvWgradArgs {
  ConvArgs conv;
  ActivationArgs activation;
  ConvGradient gradient;
  const void* x;  // [N, H, W, C]
  BatchNormArgs bn;
  void* g_weight;  // [K, C / groups, R, S], float or double
};

// out = act(norm(conv(x, weight) + bias) + residual)
struct ConvBnAddActArgs {
  ConvArgs conv;
  ActivationArgs activation;
  const void* x;       // [N, H, W, C]
  const void* weight;  // [K, C / groups, R, S]
  const void* packed;  // or null
  const void* bias;    // [K] or null
  BatchNormArgs bn;
  const void* residual;  // [N, OH, OW, K] or null
  void* out;             // [N, OH, OW, K]
};

struct Kernels {
  const char* isa;
  void (*bn_add_act)(const BnAddActArgs&);
  void (*bn_add_act_backward)(const BnAddActBackwardArgs&);
  void (*bn_act_max_pool)(const BnActMaxPoolArgs&);
  void (*bn_act_max_pool_backward)(const BnActMaxPoolBackwardArgs&);
  void (*max_pool)(const MaxPoolArgs&);
  int64_t (*conv_packed_size)(const ConvArgs&);
  void (*conv_pack)(const ConvPackArgs&);
  void (*conv_forward)(const ConvForwardArgs&);
  void (*conv_dgrad)(const ConvDgradArgs&);
  void (*conv_wgrad)(const ConvWgradArgs&);
  void (*conv_bn_add_act)(const ConvBnAddActArgs&);
  double (*multiply_add_peak)(DType, int threads, double seconds);
  bool (*has_dot_products)();  // of bfloat16 numbers: tile_registers.h
};

}  // namespace fused_resnet
