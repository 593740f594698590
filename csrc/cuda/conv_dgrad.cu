// The launch of the input's gradient.
#include "conv_dgrad.h"

#include "conv_dispatch.h"
#include "conv_finish.h"

namespace fused_resnet {

using namespace conv;

// From these tests/support/kernel_budget.py predicts the occupancy.
static_assert(kSharedBytes<SmallTile<__half, true>, DgradOperands<SmallTile<__half, true>>> == 44544);
static_assert(kSharedBytes<SmallTile<float, true>, DgradOperands<SmallTile<float, true>>> == 44544);
static_assert(kSharedBytes<LargeTile<__half>, DgradOperands<LargeTile<__half>>> == 87552);

int64_t conv_dgrad_workspace(const ConvShape& shape) {
  const int64_t pixels = shape.batch * shape.height * shape.width;
  return divide_up(pixels, kSmallTileRows) * 2 * shape.channels * int64_t(sizeof(float));
}

LaunchError launch_conv_dgrad(const ConvDgradArgs& args, Stream stream) {
  const ConvShape& shape = args.call.shape;
  ConvDgradParams params{};
  if (!make_geometry(shape, params.geometry)) return cudaErrorInvalidValue;
  params.g_y = args.gradient.g_y;
  params.y = args.gradient.y;
  params.gradient = gradient_terms(args.gradient, params.geometry);
  params.weight = args.weight;
  params.x = args.x;
  params.prologue = norm_act(args.bn, args.activation);
  params.g_x = args.g_x;
  params.partial = args.g_bn ? static_cast<float*>(args.workspace) : nullptr;

  const OutputMatrix output{params.geometry.in_pixels, shape.channels / shape.groups, shape.groups};
  const bool aligned =
      is_aligned({args.x, args.weight, args.g_x}) && is_aligned(args.gradient) && is_aligned(params.prologue);
  int64_t tiles = 0;
  const cudaError_t error = visit_traits(args.call, output, aligned, [&](auto tag) {
    using Traits = typename decltype(tag)::type;
    tiles = divide_up(output.rows, Traits::kRows);
    return launch_tiles<Traits>(conv_dgrad_kernel<Traits>, kSharedBytes<Traits, DgradOperands<Traits>>, output, stream,
                                params);
  });
  if (error != cudaSuccess || !args.g_bn) return error;
  return launch_finish_norm_gradient(
      {params.partial, int(tiles), params.geometry.channels, params.prologue, static_cast<float*>(args.g_bn)}, stream);
}

}  // namespace fused_resnet
