// The second stage of every sum: what the tiles or splits left is combined in fixed order, in double where a channel is
// one sum over many tiles. These read little: two floats a channel and tile.
#include "conv_finish.h"

#include "conv_dispatch.h"
#include "conv_prologue.h"

namespace fused_resnet {
namespace conv {
namespace {

constexpr int kFinishChannels = 32, kFinishStrands = 8;

// Sums f(tile) over all tiles: each strand takes every kFinishStrands-th, then the strands are added up in order. All
// threads of the block must call it; `scratch` [kFinishStrands, kFinishChannels] is free again when it returns.
template <class F>
__device__ __forceinline__ double sum_over_tiles(int tiles, bool exists, double (*scratch)[kFinishChannels],
                                                 const F& f) {
  double sum = 0;
  if (exists) {
    for (int tile = threadIdx.y; tile < tiles; tile += kFinishStrands) sum += f(tile);
  }
  scratch[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int strand = 0; strand < kFinishStrands; ++strand) sum += scratch[strand][threadIdx.x];
  __syncthreads();
  return sum;
}

// Chan's formula for any number of parts: with their sizes n_i, mean = sum n_i mean_i / n and
// var = sum (squares_i + n_i (mean_i - mean)^2) / n.
__global__ void __launch_bounds__(kFinishChannels* kFinishStrands) conv_finish_moments_kernel(FinishMomentsParams p) {
  SHARED_ARRAY(double, scratch_memory, kFinishStrands* kFinishChannels);
  auto* const scratch = reinterpret_cast<double (*)[kFinishChannels]>(&scratch_memory[0]);
  const int channel = blockIdx.x * kFinishChannels + threadIdx.x;
  const bool exists = channel < p.channels;
  const auto rows = [&](int tile) { return least(p.tile_rows, p.rows - tile * p.tile_rows); };
  const auto part = [&](int tile, int which) {
    return double(p.partial[(int64_t(tile) * kMomentParts + which) * p.channels + channel]);
  };
  const auto tile_mean = [&](int tile) { return part(tile, 0) + part(tile, 1); };
  const double sum = sum_over_tiles(p.tiles, exists, scratch, [&](int tile) { return rows(tile) * tile_mean(tile); });
  const double mean = sum / p.rows;
  const double squares = sum_over_tiles(p.tiles, exists, scratch, [&](int tile) {
    const double delta = tile_mean(tile) - mean;
    return part(tile, 2) + rows(tile) * delta * delta;
  });
  if (exists && threadIdx.y == 0) {
    p.mean[channel] = float(mean);
    p.var[channel] = float(squares / p.rows);
  }
}

// With s and t the sums: bias s, weight invstd t, mean -weight invstd s, var -1/2 weight invstd^3 t.
__global__ void __launch_bounds__(kFinishChannels* kFinishStrands)
    conv_finish_norm_gradient_kernel(FinishNormGradientParams p) {
  SHARED_ARRAY(double, scratch_memory, kFinishStrands* kFinishChannels);
  auto* const scratch = reinterpret_cast<double (*)[kFinishChannels]>(&scratch_memory[0]);
  const int channel = blockIdx.x * kFinishChannels + threadIdx.x;
  const bool exists = channel < p.channels;
  const auto total = [&](int which) {
    return float(sum_over_tiles(p.tiles, exists, scratch, [&](int tile) {
      return double(p.partial[(int64_t(tile) * 2 + which) * p.channels + channel]);
    }));
  };
  const float s = total(0), t = total(1);
  if (!exists || threadIdx.y) return;
  const float invstd = rsqrtf(p.norm.var[channel] + p.norm.eps);
  const float scale = p.norm.weight ? p.norm.weight[channel] * invstd : invstd;
  p.g_bn[channel] = -scale * s;
  p.g_bn[p.channels + channel] = -0.5f * scale * invstd * invstd * t;
  p.g_bn[2 * p.channels + channel] = invstd * t;
  p.g_bn[3 * p.channels + channel] = s;
}

constexpr int kFinishWgradThreads = 256;

template <class T, bool vector>
__global__ void __launch_bounds__(kFinishWgradThreads) conv_finish_wgrad_kernel(FinishWgradParams p) {
  constexpr int kChunk = vector ? 16 / sizeof(T) : 1;
  const int64_t at = (int64_t(blockIdx.x) * kFinishWgradThreads + threadIdx.x) * kChunk;
  if (at >= p.size) return;
  float sum[kChunk] = {};
  for (int split = 0; split < p.splits; ++split) {
    const float* const from = p.partial + split * p.size + at;
    float v[kChunk];
    if constexpr (vector) {
      load_channels<true>(from, 0, kChunk, 0.f, v);
    } else {
      v[0] = *from;
    }
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sum[i] += v[i];
  }
  if constexpr (vector) {
    store_vector(static_cast<T*>(p.g_weight) + at, pack<T>(sum));
  } else {
    static_cast<T*>(p.g_weight)[at] = narrow<T>(sum[0]);
  }
}

dim3 channel_blocks(int channels) {
  return dim3(unsigned(divide_up(channels, kFinishChannels)));
}

template <class T>
cudaError_t launch_finish_wgrad_as(const FinishWgradParams& params, Stream stream) {
  constexpr int64_t kChunk = 16 / sizeof(T);
  const bool vector = params.size % kChunk == 0 && is_aligned({params.partial, params.g_weight});
  const int64_t threads = vector ? params.size / kChunk : params.size, blocks = divide_up(threads, kFinishWgradThreads);
  if (!fits_grid(blocks)) return cudaErrorInvalidValue;
  const auto kernel = vector ? conv_finish_wgrad_kernel<T, true> : conv_finish_wgrad_kernel<T, false>;
  return launch(kernel, dim3(unsigned(blocks)), dim3(kFinishWgradThreads), 0, static_cast<cudaStream_t>(stream),
                params);
}

}  // namespace

LaunchError launch_finish_moments(const FinishMomentsParams& params, Stream stream) {
  return launch(conv_finish_moments_kernel, channel_blocks(params.channels), dim3(kFinishChannels, kFinishStrands), 0,
                static_cast<cudaStream_t>(stream), params);
}

LaunchError launch_finish_norm_gradient(const FinishNormGradientParams& params, Stream stream) {
  return launch(conv_finish_norm_gradient_kernel, channel_blocks(params.channels),
                dim3(kFinishChannels, kFinishStrands), 0, static_cast<cudaStream_t>(stream), params);
}

LaunchError launch_finish_wgrad(DType dtype, const FinishWgradParams& params, Stream stream) {
  switch (dtype) {
    case DType::float16: return launch_finish_wgrad_as<__half>(params, stream);
    case DType::bfloat16: return launch_finish_wgrad_as<__nv_bfloat16>(params, stream);
    case DType::float32: return launch_finish_wgrad_as<float>(params, stream);
    case DType::float64: return cudaErrorNotSupported;
  }
  return cudaErrorInvalidValue;
}

}  // namespace conv
}  // namespace fused_resnet
