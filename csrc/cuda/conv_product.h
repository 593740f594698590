// The product of two operands in shared memory, kept in registers from beginning to end: tensor cores or multiply-adds.
// `sum` holds a warp's share of the tile; `store` writes it to shared memory as floats [kRows, kTilePitch].
#pragma once

#include "conv_mma.h"
#include "conv_traits.h"

namespace fused_resnet {
namespace conv {

template <class Traits, Arithmetic arithmetic = Traits::kArithmetic>
struct Product;

template <class Traits>
struct Product<Traits, Arithmetic::tensor_core> {
  using T = typename Traits::T;
  static constexpr int kM = Traits::kWarpRows / 16, kN = Traits::kWarpColumns / 8;
  static constexpr int kStepBytes = 32;  // one mma is 16 elements of 16 bits deep, or 8 of 32
  static constexpr int kStepDepth = kStepBytes / sizeof(T);

  float sum[kM][kN][4];
  int lane, warp_row, warp_column;

  __device__ __forceinline__ Product() {
    const int warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
    warp_row = warp % Traits::kWarpsM * Traits::kWarpRows;
    warp_column = warp / Traits::kWarpsM * Traits::kWarpColumns;
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][j][e] = 0.f;
      }
    }
  }

  // sum += a b over one stage; a is [kRows, kDepth] deep or [kDepth, kRows] wide, b with kColumns likewise.
  template <bool a_deep, bool b_deep>
  __device__ __forceinline__ void add(const unsigned char* a, const unsigned char* b) {
#pragma unroll
    for (int step = 0; step < Traits::kDepthBytes / kStepBytes; ++step) {
      uint32_t a_fragments[kM][4], b_fragments[kN / 2][4];
#pragma unroll
      for (int i = 0; i < kM; ++i) load_a<a_deep>(a, warp_row + i * 16, step, a_fragments[i]);
#pragma unroll
      for (int j = 0; j < kN / 2; ++j) load_b<b_deep>(b, warp_column + j * 16, step, b_fragments[j]);
#pragma unroll
      for (int i = 0; i < kM; ++i) {
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          const uint32_t (&pair)[4] = b_fragments[j / 2];
          const uint32_t b_fragment[2] = {pair[j % 2 * 2], pair[j % 2 * 2 + 1]};
          mma<T>(sum[i][j], a_fragments[i], b_fragment);
        }
      }
    }
  }

  __device__ __forceinline__ void store(float* tile) const {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const int row = warp_row + i * 16 + lane / 4, column = warp_column + j * 8 + lane % 4 * 2;
        float* at = tile + row * Traits::kTilePitch + column;
        store_vector(at, make_float2(sum[i][j][0], sum[i][j][1]));
        store_vector(at + 8 * Traits::kTilePitch, make_float2(sum[i][j][2], sum[i][j][3]));
      }
    }
  }

 private:
  // 16 rows from `row` on: the four 8x8 matrices are rows 0-7 and 8-15 of the first half of the depth, then of the
  // second.
  template <bool deep>
  __device__ __forceinline__ void load_a(const unsigned char* a, int row, int step, uint32_t (&fragment)[4]) const {
    if constexpr (deep) {
      ptx::ldmatrix_x4<false>(fragment,
                              a + (row + lane % 16) * Traits::kDeepPitch + step * kStepBytes + lane / 16 * 16);
    } else if constexpr (sizeof(T) == 2) {
      const int depth = step * kStepDepth + lane % 8 + lane / 16 * 8, column = row + lane / 8 % 2 * 8;
      ptx::ldmatrix_x4<true>(fragment, a + depth * Traits::kWidePitchM + column * 2);
    } else {  // ldmatrix transposes 16-bit elements only
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int depth = step * kStepDepth + lane % 4 + e / 2 * 4, column = row + lane / 4 + e % 2 * 8;
        fragment[e] = *reinterpret_cast<const uint32_t*>(a + depth * Traits::kWidePitchM + column * 4);
      }
    }
    round_fragment<T>(fragment);
  }

  // 16 columns from `column` on: both halves of the depth of columns 0-7, then of columns 8-15.
  template <bool deep>
  __device__ __forceinline__ void load_b(const unsigned char* b, int column, int step, uint32_t (&fragment)[4]) const {
    if constexpr (deep) {
      const int row = column + lane % 8 + lane / 16 * 8;
      ptx::ldmatrix_x4<false>(fragment, b + row * Traits::kDeepPitch + step * kStepBytes + lane / 8 % 2 * 16);
    } else if constexpr (sizeof(T) == 2) {
      const int depth = step * kStepDepth + lane % 16;
      ptx::ldmatrix_x4<true>(fragment, b + depth * Traits::kWidePitchN + (column + lane / 16 * 8) * 2);
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int depth = step * kStepDepth + lane % 4 + e % 2 * 4, at = column + lane / 4 + e / 2 * 8;
        fragment[e] = *reinterpret_cast<const uint32_t*>(b + depth * Traits::kWidePitchN + at * 4);
      }
    }
    round_fragment<T>(fragment);
  }
};

// 4 x 8 sums a thread, rows 16 and columns 8 apart: the eight rows of b that a quarter of a warp reads lie in different
// banks.
template <class Traits>
struct Product<Traits, Arithmetic::fma> {
  static_assert(sizeof(typename Traits::T) == 4 && Traits::kRows == 64 && Traits::kColumns == 64, "64 x 64 floats");
  static constexpr int kM = 4, kN = 8;
  static constexpr int kRowStep = Traits::kRows / kM, kColumnStep = Traits::kColumns / kN;

  float sum[kM][kN];
  int row, column;

  __device__ __forceinline__ Product() : row(threadIdx.x / kColumnStep), column(threadIdx.x % kColumnStep) {
    each([&](int i, int j) { sum[i][j] = 0.f; });
  }

  // A stage is summed by itself first: the error of a sum grows with how many terms are added one after the other.
  template <bool a_deep, bool b_deep>
  __device__ __forceinline__ void add(const unsigned char* a, const unsigned char* b) {
    float stage_sum[kM][kN] = {};
#pragma unroll
    for (int depth = 0; depth < Traits::kDepth; depth += 4) {
      float a_values[kM][4], b_values[kN][4];
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        load<a_deep, Traits::kWidePitchM>(a, row + i * kRowStep, depth, a_values[i]);
      }
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        load<b_deep, Traits::kWidePitchN>(b, column + j * kColumnStep, depth, b_values[j]);
      }
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        each([&](int i, int j) { stage_sum[i][j] = fmaf(a_values[i][d], b_values[j][d], stage_sum[i][j]); });
      }
    }
    each([&](int i, int j) { sum[i][j] += stage_sum[i][j]; });
  }

  __device__ __forceinline__ void store(float* tile) const {
    each([&](int i, int j) { tile[(row + i * kRowStep) * Traits::kTilePitch + column + j * kColumnStep] = sum[i][j]; });
  }

 private:
  template <class F>
  static __device__ __forceinline__ void each(const F& f) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) f(i, j);
    }
  }

  // Four values along the depth.
  template <bool deep, int wide_pitch>
  static __device__ __forceinline__ void load(const unsigned char* operand, int at, int depth, float (&v)[4]) {
    if constexpr (deep) {
      load_floats(reinterpret_cast<const float*>(operand + at * Traits::kDeepPitch + depth * 4), v);
    } else {
#pragma unroll
      for (int d = 0; d < 4; ++d) v[d] = *reinterpret_cast<const float*>(operand + (depth + d) * wide_pitch + at * 4);
    }
  }
};

}  // namespace conv
}  // namespace fused_resnet
