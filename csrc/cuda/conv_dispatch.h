// From a call to a kernel: the one place where type, tile and access width become template arguments.
#pragma once

#include <initializer_list>

#include "conv_launchers.h"
#include "conv_params.h"
#include "conv_traits.h"

namespace fused_resnet {
namespace conv {

template <class T, bool vector>
using SmallTile = ConvTraits<T, Arithmetic::tensor_core, 64, 64, 2, 2, vector>;
template <class T>
using LargeTile = ConvTraits<T, Arithmetic::tensor_core, 128, 128, 2, 4, true>;
template <bool vector>
using FmaTile = ConvTraits<float, Arithmetic::fma, 64, 64, 2, 2, vector>;

constexpr int kSmallTileRows = 64, kLargeTileRows = 128;
// Fewer blocks than an A100 has multiprocessors leave some idle. Of no device in particular, so that the choice, and
// with it the order of the sums, is the same on all.
constexpr int64_t kBlocksForAll = 108;

inline int64_t divide_up(int64_t n, int64_t by) {
  return (n + by - 1) / by;
}

// What the output of a pass is: so many matrices, of groups and phases.
struct OutputMatrix {
  int64_t rows, columns, count;

  int64_t tiles(int64_t size) const { return divide_up(rows, size) * divide_up(columns, size) * count; }
};

inline bool is_aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (!aligned16(p)) return false;
  }
  return true;
}

// Whether every chunk of a pixel's channels is whole and aligned, given that the tensors are.
inline bool has_whole_chunks(const ConvCall& call) {
  const int64_t chunk = call.dtype == DType::float32 ? 4 : 8, groups = call.shape.groups;
  return call.shape.channels / groups % chunk == 0 && call.shape.out_channels / groups % chunk == 0;
}

inline bool wants_large_tile(const ConvCall& call, const OutputMatrix& output) {
  if (call.tile != ConvTile::automatic) return call.tile == ConvTile::large;
  return output.columns > kSmallTileRows && output.tiles(kLargeTileRows) >= kBlocksForAll;
}

template <class Traits>
struct TraitsTag {
  using type = Traits;
};

template <class T, class F>
cudaError_t visit_16_bit(bool large, bool vector, const F& f) {
  if (!vector) return f(TraitsTag<SmallTile<T, false>>{});
  return large ? f(TraitsTag<LargeTile<T>>{}) : f(TraitsTag<SmallTile<T, true>>{});
}

template <class F>
cudaError_t visit_traits(const ConvCall& call, const OutputMatrix& output, bool aligned, const F& f) {
  const bool vector = aligned && has_whole_chunks(call), large = wants_large_tile(call, output);
  switch (call.dtype) {
    case DType::float16: return visit_16_bit<__half>(large, vector, f);
    case DType::bfloat16: return visit_16_bit<__nv_bfloat16>(large, vector, f);
    case DType::float32:
      if (!vector) return f(TraitsTag<FmaTile<false>>{});
      return call.allow_tf32 ? f(TraitsTag<SmallTile<float, true>>{}) : f(TraitsTag<FmaTile<true>>{});
    case DType::float64: return cudaErrorNotSupported;
  }
  return cudaErrorInvalidValue;
}

// False where a size does not fit the 32 bits that the kernels count in.
inline bool make_geometry(const ConvShape& shape, ConvGeometry& geometry) {
  const int64_t limit = (int64_t(1) << 31) - 1 - kLargeTileRows;
  const int64_t in_pixels = shape.batch * shape.height * shape.width;
  const int64_t out_pixels = shape.batch * shape.out_height * shape.out_width;
  const int64_t extent = int64_t(1) << 29;  // of an image with its padding: what pixel_row() can tell from no image
  const auto fits = [&](int64_t size, int64_t pad, int64_t kernel, int64_t dilation) {
    return size + 2 * pad + kernel * dilation < extent;
  };
  if (in_pixels > limit || out_pixels > limit || shape.channels > extent || shape.out_channels > extent ||
      !fits(shape.height, shape.pad_h, shape.kernel_h, shape.dilation_h) ||
      !fits(shape.width, shape.pad_w, shape.kernel_w, shape.dilation_w)) {
    return false;
  }
  geometry = {int(shape.height),
              int(shape.width),
              int(shape.channels),
              int(shape.out_height),
              int(shape.out_width),
              int(shape.out_channels),
              int(shape.kernel_h),
              int(shape.kernel_w),
              int(shape.stride_h),
              int(shape.stride_w),
              int(shape.pad_h),
              int(shape.pad_w),
              int(shape.dilation_h),
              int(shape.dilation_w),
              int(shape.groups),
              int(shape.channels / shape.groups),
              int(shape.out_channels / shape.groups),
              int(shape.batch),
              int(out_pixels)};
  return true;
}

inline NormAct norm_act(const BatchNormArgs& bn, const ActivationArgs& activation) {
  const auto vector = [](const void* v) { return static_cast<const float*>(v); };
  return {vector(bn.mean), vector(bn.var), vector(bn.weight),
          vector(bn.bias), float(bn.eps),  AnyActivation<float>(activation)};
}

inline GradientTerms gradient_terms(const ConvGradient& gradient, const ConvGeometry& geometry) {
  const auto vector = [](const void* v) { return static_cast<const float*>(v); };
  return {vector(gradient.y_mean), vector(gradient.g_mean), vector(gradient.g_var), 1.f / float(geometry.out_pixels)};
}

inline bool is_aligned(const NormAct& norm) {
  return is_aligned({norm.mean, norm.var, norm.weight, norm.bias});
}

inline bool is_aligned(const ConvGradient& gradient) {
  return is_aligned({gradient.g_y, gradient.y, gradient.y_mean, gradient.g_mean, gradient.g_var});
}

// One dimension of blocks, which allows for 2^31 - 1.
inline bool fits_grid(int64_t blocks) {
  return blocks < (int64_t(1) << 31);
}

// One block for each tile of the output.
template <class Traits, class Params>
cudaError_t launch_tiles(void (*kernel)(Params), int shared_bytes, const OutputMatrix& output, Stream stream,
                         const Params& params) {
  const int64_t blocks =
      divide_up(output.rows, Traits::kRows) * divide_up(output.columns, Traits::kColumns) * output.count;
  if (!fits_grid(blocks)) return cudaErrorInvalidValue;
  return launch(kernel, dim3(unsigned(blocks)), dim3(Traits::kThreads), shared_bytes, static_cast<cudaStream_t>(stream),
                params);
}

}  // namespace conv
}  // namespace fused_resnet
