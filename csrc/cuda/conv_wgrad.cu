// The launch of the filter's gradient, and how its pixels are split.
#include "conv_wgrad.h"

#include "conv_dispatch.h"
#include "conv_finish.h"

namespace fused_resnet {

using namespace conv;

namespace {

constexpr int64_t kLeastSplitPixels = 512;  // sixteen steps of the loop: less, and the sums cost more than the product
constexpr int64_t kMostSplits = 64;

struct Splits {
  int64_t pixels, count;
};

// As many splits as give every multiprocessor work twice over. It depends on the shape alone, never on the tile.
Splits splits_of(const ConvShape& shape) {
  const OutputMatrix output{shape.out_channels / shape.groups, shape.channels / shape.groups, shape.groups};
  const int64_t pixels = shape.batch * shape.out_height * shape.out_width;
  const int64_t tiles = output.tiles(kSmallTileRows) * shape.kernel_h * shape.kernel_w;
  int64_t count = divide_up(2 * kBlocksForAll, tiles);
  if (count > kMostSplits) count = kMostSplits;
  int64_t each = divide_up(pixels, count);
  if (each < kLeastSplitPixels) each = kLeastSplitPixels;
  return {each, divide_up(pixels, each)};
}

int64_t filter_size(const ConvShape& shape) {
  return shape.out_channels * shape.kernel_h * shape.kernel_w * (shape.channels / shape.groups);
}

}  // namespace

int64_t conv_wgrad_workspace(const ConvShape& shape) {
  return splits_of(shape).count * filter_size(shape) * int64_t(sizeof(float));
}

LaunchError launch_conv_wgrad(const ConvWgradArgs& args, Stream stream) {
  const ConvShape& shape = args.call.shape;
  ConvWgradParams params{};
  if (!make_geometry(shape, params.geometry)) return cudaErrorInvalidValue;
  const Splits splits = splits_of(shape);
  params.g_y = args.gradient.g_y;
  params.y = args.gradient.y;
  params.gradient = gradient_terms(args.gradient, params.geometry);
  params.x = args.x;
  params.prologue = norm_act(args.bn, args.activation);
  params.split_pixels = int(splits.pixels);
  params.partial = static_cast<float*>(args.workspace);

  const OutputMatrix output{shape.out_channels / shape.groups, shape.channels / shape.groups,
                            shape.groups * shape.kernel_h * shape.kernel_w * splits.count};
  const bool aligned = is_aligned({args.x, args.workspace}) && is_aligned(args.gradient) && is_aligned(params.prologue);
  const cudaError_t error = visit_traits(args.call, output, aligned, [&](auto tag) {
    using Traits = typename decltype(tag)::type;
    return launch_tiles<Traits>(conv_wgrad_kernel<Traits>, kSharedBytes<Traits, WgradOperands<Traits>>, output, stream,
                                params);
  });
  if (error != cudaSuccess) return error;
  return launch_finish_wgrad(args.call.dtype, {params.partial, int(splits.count), filter_size(shape), args.g_weight},
                             stream);
}

}  // namespace fused_resnet
