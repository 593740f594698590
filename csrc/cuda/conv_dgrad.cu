// The launch of the input's gradient.
#include "conv_dgrad.h"

#include <algorithm>
#include <numeric>

#include "conv_dispatch.h"
#include "conv_finish.h"

namespace fused_resnet {

using namespace conv;

namespace {

PhaseSteps phase_steps(int64_t size, int64_t stride, int64_t dilation) {
  const int64_t divisor = std::gcd(stride, dilation);
  return {int(std::min(size, stride)), int(stride / divisor), int(dilation / divisor)};
}

// One matrix for each group and phase, with as many rows as the largest phase has pixels.
OutputMatrix dgrad_output(const ConvShape& shape) {
  const int64_t phases = std::min(shape.height, shape.stride_h) * std::min(shape.width, shape.stride_w);
  const int64_t rows = shape.batch * divide_up(shape.height, shape.stride_h) * divide_up(shape.width, shape.stride_w);
  return {rows, shape.channels / shape.groups, shape.groups * phases};
}

// Tiles of rows of every phase.
int64_t row_tiles(const ConvShape& shape, int64_t tile_rows) {
  const OutputMatrix output = dgrad_output(shape);
  return divide_up(output.rows, tile_rows) * (output.count / shape.groups);
}

}  // namespace

int64_t conv_dgrad_workspace(const ConvShape& shape) {
  return row_tiles(shape, kSmallTileRows) * 2 * shape.channels * int64_t(sizeof(float));
}

LaunchError launch_conv_dgrad(const ConvDgradArgs& args, Stream stream) {
  const ConvShape& shape = args.call.shape;
  ConvDgradParams params{};
  if (!make_geometry(shape, params.geometry)) return cudaErrorInvalidValue;
  params.steps_h = phase_steps(shape.height, shape.stride_h, shape.dilation_h);
  params.steps_w = phase_steps(shape.width, shape.stride_w, shape.dilation_w);
  params.g_y = args.gradient.g_y;
  params.y = args.gradient.y;
  params.gradient = gradient_terms(args.gradient, params.geometry);
  params.weight = args.weight;
  params.x = args.x;
  params.prologue = norm_act(args.bn, args.activation);
  params.g_x = args.g_x;
  params.partial = args.g_bn ? static_cast<float*>(args.workspace) : nullptr;

  const OutputMatrix output = dgrad_output(shape);
  const bool aligned =
      is_aligned({args.x, args.weight, args.g_x}) && is_aligned(args.gradient) && is_aligned(params.prologue);
  int64_t tiles = 0;
  const cudaError_t error = visit_traits(args.call, output, aligned, [&](auto tag) {
    using Traits = typename decltype(tag)::type;
    tiles = row_tiles(shape, Traits::kRows);
    return launch_tiles<Traits>(conv_dgrad_kernel<Traits>, kSharedBytes<Traits, DgradOperands<Traits>>, output, stream,
                                params);
  });
  if (error != cudaSuccess || !args.g_bn) return error;
  return launch_finish_norm_gradient(
      {params.partial, int(tiles), params.geometry.channels, params.prologue, static_cast<float*>(args.g_bn)}, stream);
}

}  // namespace fused_resnet
