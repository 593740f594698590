// Plain data that host code, launchers and kernels hand to each other. Sizes and offsets count elements, in 64 bits.
#pragma once

#include <cstdint>

namespace fused_resnet {

// The numbering is that of DTYPES in fused_resnet/backends/cpu.py.
enum class DType : int { float32, float64, bfloat16, float16 };

// The numbering is that of ACTIVATIONS in fused_resnet/backends/arguments.py.
enum class Activation : int { identity, relu, leaky_relu, relu6, silu, hardswish, gelu };

struct ActivationArgs {
  Activation kind;
  double negative_slope;  // of leaky_relu
};

// An image [N, C, H, W] as [outer, channels, inner]: channels_last is [N H W, C, 1], contiguous is [N, C, H W].
struct ChannelView {
  int64_t outer, channels, inner;

  int64_t elements() const { return outer * channels * inner; }
  int64_t per_channel() const { return outer * inner; }
};

// norm(x) = weight / sqrt(var + eps) (x - mean) + bias. Vectors are float, for float64 tensors double.
// mean null: no batch norm, the identity; weight or bias null: 1 or 0.
struct BatchNormArgs {
  const void* mean;    // [C]
  const void* var;     // [C]
  const void* weight;  // [C]
  const void* bias;    // [C]
  double eps;
};

// Max pooling of a channels_last image [batch, height, width, channels].
struct PoolShape {
  int64_t batch, height, width, channels;
  int64_t out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

// A convolution of a channels_last image [batch, height, width, channels] with a filter [out_channels, channels /
// groups, kernel_h, kernel_w].
struct ConvShape {
  int64_t batch, height, width, channels;
  int64_t out_height, out_width, out_channels;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
};

// Elements between neighbours of a filter [K, C / groups, R, S].
struct FilterStrides {
  int64_t k, c, r, s;
};

// How a convolution is computed. The numbering is that of CONV_ALGORITHMS in
// fused_resnet/backends/cpu/conv_algorithm.py. depthwise: one channel a group, in and out; grouped: 2, 4 or 8.
// winograd_f2, winograd_f4, winograd_f5: 3x3 of stride 1; winograd_s2: 3x3 of stride 2; winograd_stem: 7x7 of stride 2.
// bf16x1, bf16x3, bf16x6: direct, every float as the sum of 1, 2 or 3 bfloat16 numbers, in so many products of them.
enum class ConvAlgorithm : int {
  direct,
  depthwise,
  grouped,
  winograd_f2,
  winograd_f4,
  winograd_f5,
  winograd_s2,
  winograd_stem,
  bf16x1,
  bf16x3,
  bf16x6
};

}  // namespace fused_resnet
