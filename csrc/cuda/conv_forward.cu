// The launches of forward and of the inference op, which differ in the epilogue alone.
#include "conv_dispatch.h"
#include "conv_finish.h"
#include "conv_forward.h"

namespace fused_resnet {

using namespace conv;

namespace {

// Launches the kernel; tells in `tile_rows` how many rows a tile had.
cudaError_t launch_kernel(const ConvCall& call, const ConvForwardParams& params, Stream stream, int64_t& tile_rows) {
  const ConvShape& shape = call.shape;
  const OutputMatrix output{params.geometry.out_pixels, shape.out_channels / shape.groups, shape.groups};
  const bool aligned = is_aligned({params.x, params.weight, params.bias, params.y, params.residual}) &&
                       is_aligned(params.prologue) && is_aligned(params.epilogue);
  return visit_traits(call, output, aligned, [&](auto tag) {
    using Traits = typename decltype(tag)::type;
    tile_rows = Traits::kRows;
    return launch_tiles<Traits>(conv_forward_kernel<Traits>, kSharedBytes<Traits, ForwardOperands<Traits>>, output,
                                stream, params);
  });
}

}  // namespace

int64_t conv_forward_workspace(const ConvShape& shape) {
  const int64_t pixels = shape.batch * shape.out_height * shape.out_width;
  return divide_up(pixels, kSmallTileRows) * kMomentParts * shape.out_channels * int64_t(sizeof(float));
}

LaunchError launch_conv_forward(const ConvForwardArgs& args, Stream stream) {
  ConvForwardParams params{};
  if (!make_geometry(args.call.shape, params.geometry)) return cudaErrorInvalidValue;
  params.x = args.x;
  params.prologue = norm_act(args.bn, args.activation);
  params.weight = args.weight;
  params.bias = static_cast<const float*>(args.bias);
  params.y = args.y;
  params.partial = args.mean ? static_cast<float*>(args.workspace) : nullptr;
  int64_t tile_rows = 0;
  const cudaError_t error = launch_kernel(args.call, params, stream, tile_rows);
  if (error != cudaSuccess || !args.mean) return error;
  const int rows = params.geometry.out_pixels;
  return launch_finish_moments(
      {params.partial, int(divide_up(rows, tile_rows)), int(tile_rows), rows, params.geometry.out_channels,
       static_cast<float*>(args.mean), static_cast<float*>(args.var)},
      stream);
}

LaunchError launch_conv_bn_add_act(const ConvBnAddActArgs& args, Stream stream) {
  ConvForwardParams params{};
  if (!make_geometry(args.call.shape, params.geometry)) return cudaErrorInvalidValue;
  params.x = args.x;
  params.weight = args.weight;
  params.bias = static_cast<const float*>(args.bias);
  params.epilogue = norm_act(args.bn, args.activation);
  params.residual = args.residual;
  params.y = args.out;
  int64_t tile_rows = 0;
  return launch_kernel(args.call, params, stream, tile_rows);
}

}  // namespace fused_resnet
