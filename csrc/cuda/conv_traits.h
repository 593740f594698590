// Every constant of a convolution kernel, derived from its type and tile.
#pragma once

#include "types.h"

namespace fused_resnet {
namespace conv {

// Whether the product runs on tensor cores (16-bit types; float as tf32) or on fused multiply-adds (float).
enum class Arithmetic { tensor_core, fma };

// Kernels are bound to kThreads and one block: told nothing of blocks, the assembler may spill a register to fit one
// more.
//
// A block computes kRows x kColumns of the output, each warp kWarpRows x kWarpColumns of that.
// kVector: channels of a group come in whole 16-byte chunks and every tensor is aligned to them.
template <class T_, Arithmetic arithmetic, int rows, int columns, int warps_m, int warps_n, bool vector>
struct ConvTraits {
  using T = T_;
  static constexpr Arithmetic kArithmetic = arithmetic;
  static constexpr bool kVector = vector;
  static constexpr int kRows = rows, kColumns = columns;
  static constexpr int kWarpsM = warps_m, kThreads = 32 * warps_m * warps_n;
  static constexpr int kWarpRows = rows / warps_m, kWarpColumns = columns / warps_n;
  static constexpr int kStages = 3;

  static constexpr int kChunk = 16 / sizeof(T);  // elements of a 16-byte access
  static constexpr int kDepthBytes = 64;         // of the sum, per stage: two products of tensor cores deep
  static constexpr int kDepth = kDepthBytes / sizeof(T);
  static constexpr int kChunksPerThread = 2;  // of each operand and stage

  // An operand lies in shared memory with the sum's index along the row ("deep": x and the filter of forward) or down
  // the column ("wide": both operands of wgrad). Rows are padded by as much as spreads eight of them, the rows of an
  // 8x8 matrix that ldmatrix reads, over all banks; four rows of 4-byte words, which are read one by one, need 32.
  static constexpr int kDeepPitch = kDepthBytes + 16;
  static constexpr int kWidePitchM = rows * int(sizeof(T)) + (sizeof(T) == 4 ? 32 : 16);
  static constexpr int kWidePitchN = columns * int(sizeof(T)) + (sizeof(T) == 4 ? 32 : 16);
  static constexpr int kTilePitch = columns + 4;  // floats of a row of the finished tile

  static_assert(rows * 4 == kThreads * kChunksPerThread && columns * 4 == kThreads * kChunksPerThread,
                "every thread copies the same number of chunks");
  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 16 == 0, "whole products of a warp");
};

template <class Traits>
constexpr int kFinishedTileBytes = Traits::kRows * Traits::kTilePitch * 4;

__device__ __forceinline__ int least(int a, int b) {
  return a < b ? a : b;
}

__device__ __forceinline__ int positive(int n) {
  return n < 0 ? 0 : n;
}

// A chunk of 16 bytes and its elements as floats.
template <class T, int n = 16 / sizeof(T)>
__device__ __forceinline__ void unpack(const uint4& chunk, float (&v)[n]) {
  T elements[n];
  memcpy(static_cast<void*>(elements), &chunk, 16);
#pragma unroll
  for (int i = 0; i < n; ++i) v[i] = widen(elements[i]);
}

template <class T, int n = 16 / sizeof(T)>
__device__ __forceinline__ uint4 pack(const float (&v)[n]) {
  T elements[n];
#pragma unroll
  for (int i = 0; i < n; ++i) elements[i] = narrow<T>(v[i]);
  uint4 chunk;
  memcpy(&chunk, static_cast<const void*>(elements), 16);
  return chunk;
}

// The first `valid` elements of a chunk in global memory, the others zero.
template <class Traits>
__device__ __forceinline__ uint4 load_chunk(const typename Traits::T* p, int valid) {
  using T = typename Traits::T;
  if constexpr (Traits::kVector) {
    return valid > 0 ? load_vector<uint4>(p) : make_uint4(0, 0, 0, 0);
  } else {
    T elements[Traits::kChunk];
#pragma unroll
    for (int i = 0; i < Traits::kChunk; ++i) elements[i] = i < valid ? p[i] : narrow<T>(0.f);
    uint4 chunk;
    memcpy(&chunk, static_cast<const void*>(elements), 16);
    return chunk;
  }
}

template <class Traits>
__device__ __forceinline__ void store_chunk(typename Traits::T* p, const uint4& chunk, int valid) {
  using T = typename Traits::T;
  if constexpr (Traits::kVector) {
    if (valid > 0) store_vector(p, chunk);
  } else {
    T elements[Traits::kChunk];
    memcpy(static_cast<void*>(elements), &chunk, 16);
#pragma unroll
    for (int i = 0; i < Traits::kChunk; ++i) {
      if (i < valid) p[i] = elements[i];
    }
  }
}

// Floats from and to aligned memory, 16 bytes at a time.
template <int n>
__device__ __forceinline__ void load_floats(const float* from, float (&v)[n]) {
#pragma unroll
  for (int i = 0; i < n; i += 4) {
    const float4 quad = load_vector<float4>(from + i);
    v[i] = quad.x, v[i + 1] = quad.y, v[i + 2] = quad.z, v[i + 3] = quad.w;
  }
}

template <int n>
__device__ __forceinline__ void store_floats(float* to, const float (&v)[n]) {
#pragma unroll
  for (int i = 0; i < n; i += 4) store_vector(to + i, make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]));
}

// A chunk's worth of a vector of channels; beyond `valid` and for a null vector `otherwise`.
template <bool vector, int n>
__device__ __forceinline__ void load_channels(const float* v, int channel, int valid, float otherwise,
                                              float (&out)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) out[i] = otherwise;
  if (v == nullptr) return;
  if constexpr (vector) {
    if (valid > 0) load_floats(v + channel, out);
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (i < valid) out[i] = v[channel + i];
    }
  }
}

}  // namespace conv
}  // namespace fused_resnet
