// The second stage of every sum, as the launchers of conv_forward.cu, conv_dgrad.cu and conv_wgrad.cu call it.
#pragma once

#include "conv_params.h"
#include "launchers.h"

namespace fused_resnet {
namespace conv {

struct FinishMomentsParams {
  const float* partial;  // [tiles, kMomentParts, K]
  int tiles, tile_rows, rows, channels;
  float* mean;  // [K]
  float* var;   // [K], biased
};

struct FinishNormGradientParams {
  const float* partial;  // [tiles, 2, C]: sums of p, of p (x - mean)
  int tiles, channels;
  NormAct norm;
  float* g_bn;  // [4, C]: of mean, var, weight, bias
};

struct FinishWgradParams {
  const float* partial;  // [splits, size]
  int splits;
  int64_t size;
  void* g_weight;  // [size]
};

LaunchError launch_finish_moments(const FinishMomentsParams& params, Stream stream);
LaunchError launch_finish_norm_gradient(const FinishNormGradientParams& params, Stream stream);
LaunchError launch_finish_wgrad(DType dtype, const FinishWgradParams& params, Stream stream);

}  // namespace conv
}  // namespace fused_resnet
