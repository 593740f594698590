// What the convolution kernels take: plain data, filled by the launchers. Sizes are 32 bits, which make_geometry has
// proven to hold them; offsets into tensors are taken in 64.
#pragma once

#include "activations.h"

namespace fused_resnet {
namespace conv {

// ConvShape as a kernel divides by it, with what every thread would compute again.
struct ConvGeometry {
  int height, width, channels;
  int out_height, out_width, out_channels;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int groups, group_channels, group_out_channels;
  int batch, out_pixels;  // N and N OH OW
};

// u = act(norm(x)); mean null: no norm.
struct NormAct {
  const float* mean;    // [C]
  const float* var;     // [C]
  const float* weight;  // [C] or null
  const float* bias;    // [C] or null
  float eps;
  AnyActivation<float> act{ActivationArgs{Activation::identity, 0}};
};

// g = g_y + g_mean / m + 2 g_var (y - y_mean) / m, with m = N OH OW; g_mean null: g_y alone.
struct GradientTerms {
  const float* y_mean;  // [K]
  const float* g_mean;  // [K]
  const float* g_var;   // [K]
  float per_pixel;      // 1 / m
};

// What a tile leaves of each channel for the statistics: its mean as the sum of two floats, and its sum of squares
// about that mean.
constexpr int kMomentParts = 3;

struct ConvForwardParams {
  ConvGeometry geometry;
  const void* x;         // [N, H, W, C]
  NormAct prologue;      // of x
  const void* weight;    // [K, R, S, C / groups]
  const float* bias;     // [K] or null
  NormAct epilogue;      // of the output, its activation after the residual; with statistics unused
  const void* residual;  // [N, OH, OW, K] or null
  void* y;               // [N, OH, OW, K]
  float* partial;        // [row tiles, kMomentParts, K]; null: no statistics
};

// Along one axis of x: how many phases there are, see conv_phases.h, and how far it is from one tap of a phase to the
// next, in the filter and, backwards, in g.
struct PhaseSteps {
  int phases;  // of a row or column that is shorter than the stride, as many as it is long
  int tap;     // stride / gcd(stride, dilation)
  int source;  // dilation / gcd(stride, dilation)
};

struct ConvDgradParams {
  ConvGeometry geometry;
  PhaseSteps steps_h, steps_w;
  const void* g_y;  // [N, OH, OW, K]
  const void* y;    // [N, OH, OW, K]
  GradientTerms gradient;
  const void* weight;  // [K, R, S, C / groups]
  const void* x;       // [N, H, W, C]
  NormAct prologue;    // of x
  void* g_x;           // [N, H, W, C]
  float* partial;      // [row tiles, 2, C]: a tile's sums of p and of p (x - mean); null: no batch norm
};

struct ConvWgradParams {
  ConvGeometry geometry;
  const void* g_y;  // [N, OH, OW, K]
  const void* y;    // [N, OH, OW, K]
  GradientTerms gradient;
  const void* x;     // [N, H, W, C]
  NormAct prologue;  // of x
  int split_pixels;  // output pixels of one split
  float* partial;    // [splits, K, R, S, C / groups]
};

}  // namespace conv
}  // namespace fused_resnet
