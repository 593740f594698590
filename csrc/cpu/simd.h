// Vectors of a lane count that the instruction set decides, over the vector extensions of GCC and Clang.
//
// Kernels are written once against Vector<S>. In the baseline build it is the scalar S itself: that build is the
// specification which the wider ones are tested against.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE__)
#include <immintrin.h>
#endif

#include "float16.h"

#ifndef FUSED_RESNET_VECTOR_BYTES
#error "compile with -DFUSED_RESNET_VECTOR_BYTES=0 (scalar), 16, 32 or 64"
#endif

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

template <class S>
constexpr int kLanes = FUSED_RESNET_VECTOR_BYTES == 0 ? 1 : FUSED_RESNET_VECTOR_BYTES / static_cast<int>(sizeof(S));

template <class S, int N>
struct VectorOf {
  typedef S type __attribute__((vector_size(sizeof(S) * N)));
};
template <class S>
struct VectorOf<S, 1> {
  using type = S;
};

// A register of float or double, which tensors of every type are computed in.
template <class S>
using Vector = typename VectorOf<S, kLanes<S>>::type;

// The type that a stored type is computed and summed in.
template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// Lane by lane value conversion between vectors of N lanes.
template <class To, int N, class From>
inline typename VectorOf<To, N>::type convert(From v) {
  if constexpr (N == 1) {
    return static_cast<To>(v);
  } else {
    return __builtin_convertvector(v, typename VectorOf<To, N>::type);
  }
}

// kLanes<float> whole numbers of 16 bits or one byte as lanes of 32 bits, and back. Compilers take them apart one by
// one where they are not told the instruction.
template <class To, class From>
inline typename VectorOf<To, kLanes<float>>::type widen(const From* p) {
  static_assert(sizeof(To) == 4 && std::is_unsigned_v<From>);
#if defined(__AVX512F__) && FUSED_RESNET_VECTOR_BYTES == 64
  using Words = typename VectorOf<To, 16>::type;
  if constexpr (sizeof(From) == 2)
    return bit_cast<Words>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  else
    return bit_cast<Words>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__) && FUSED_RESNET_VECTOR_BYTES == 32
  using Words = typename VectorOf<To, 8>::type;
  if constexpr (sizeof(From) == 2)
    return bit_cast<Words>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  else
    return bit_cast<Words>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  typename VectorOf<From, kLanes<float>>::type numbers;
  std::memcpy(&numbers, p, sizeof(numbers));
  return convert<To, kLanes<float>>(numbers);
#endif
}

template <class To, class Words>
inline void narrow(const Words& words, To* p) {
#if defined(__AVX512F__) && FUSED_RESNET_VECTOR_BYTES == 64
  if constexpr (sizeof(To) == 2)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bit_cast<__m512i>(words)));
  else
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(bit_cast<__m512i>(words)));
#else
  const auto numbers = convert<To, kLanes<float>>(words);
  std::memcpy(p, &numbers, sizeof(numbers));
#endif
}

template <class S>
inline Vector<S> broadcast(S s) {
  return s - Vector<S>{};  // s + 0 would be an addition, for the sake of -0
}

// kLanes elements of a tensor, widened to its accumulation type.
template <class T>
inline Vector<Accumulate<T>> load(const T* p) {
  using S = Accumulate<T>;
  [[maybe_unused]] constexpr int N = kLanes<S>;
  if constexpr (std::is_same_v<T, S>) {
    Vector<S> v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return bit_cast<Vector<float>>(widen<uint32_t>(reinterpret_cast<const uint16_t*>(p)) << 16);
  } else {
    static_assert(std::is_same_v<T, Float16>);
#if defined(__AVX512F__) && FUSED_RESNET_VECTOR_BYTES == 64
    return bit_cast<Vector<float>>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__) && FUSED_RESNET_VECTOR_BYTES == 32
    return bit_cast<Vector<float>>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
    float lanes[N];
    for (int i = 0; i < N; ++i) lanes[i] = to_float(p[i]);
    return load(lanes);
#endif
  }
}

// Rounds to nearest even, as PyTorch does.
template <class T>
inline void store(T* p, Vector<Accumulate<T>> v) {
  using S = Accumulate<T>;
  constexpr int N = kLanes<S>;
  if constexpr (std::is_same_v<T, S>) {
    std::memcpy(p, &v, sizeof(v));
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    using Bits = typename VectorOf<uint32_t, N>::type;
    const Bits bits = bit_cast<Bits>(v), quiet_nan = Bits{} + 0x7fc0u;
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    narrow(v != v ? quiet_nan : rounded, reinterpret_cast<uint16_t*>(p));
  } else {
    static_assert(std::is_same_v<T, Float16>);
#if defined(__AVX512F__) && FUSED_RESNET_VECTOR_BYTES == 64
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && FUSED_RESNET_VECTOR_BYTES == 32
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
    float lanes[N];
    store(lanes, v);
    for (int i = 0; i < N; ++i) p[i] = to_float16(lanes[i]);
#endif
  }
}

// The first `n` lanes only; the others are 0 and not touched in memory.
template <class T>
inline Vector<Accumulate<T>> load(const T* p, int n) {
  constexpr int N = kLanes<Accumulate<T>>;
  if (n == N) return load(p);
#if defined(__AVX512F__) && FUSED_RESNET_VECTOR_BYTES == 64
  const auto mask = static_cast<uint16_t>((1u << n) - 1);
  if constexpr (std::is_same_v<T, float>)
    return bit_cast<Vector<float>>(_mm512_maskz_loadu_ps(mask, p));
  else if constexpr (std::is_same_v<T, double>)
    return bit_cast<Vector<double>>(_mm512_maskz_loadu_pd(static_cast<uint8_t>(mask), p));
#endif
  T lanes[N] = {};
  std::memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}

template <class T>
inline void store(T* p, Vector<Accumulate<T>> v, int n) {
  constexpr int N = kLanes<Accumulate<T>>;
  if (n == N) return store(p, v);
#if defined(__AVX512F__) && FUSED_RESNET_VECTOR_BYTES == 64
  const auto mask = static_cast<uint16_t>((1u << n) - 1);
  if constexpr (std::is_same_v<T, float>)
    return _mm512_mask_storeu_ps(p, mask, bit_cast<__m512>(v));
  else if constexpr (std::is_same_v<T, double>)
    return _mm512_mask_storeu_pd(p, static_cast<uint8_t>(mask), bit_cast<__m512d>(v));
#endif
  T lanes[N];
  store(lanes, v);
  std::memcpy(p, lanes, n * sizeof(T));
}

// to[j, i] = from[i, j], 16 x 16 numbers: what a register of AVX-512 holds of floats, each way.
constexpr int64_t kSquareSide = 16;
inline void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
#if defined(__AVX512F__) && FUSED_RESNET_VECTOR_BYTES == 64
  // Four rows' quarters in a register, and then 4 x 4 numbers in each quarter.
  for (int64_t j = 0; j < kSquareSide; j += 4) {
    __m512 rows[4];
    for (int64_t i = 0; i < 4; ++i) {
      const auto quarter = [&](int64_t row) { return _mm_loadu_ps(from + (i + row) * from_stride + j); };
      rows[i] = _mm512_castps128_ps512(quarter(0));
      rows[i] = _mm512_insertf32x4(rows[i], quarter(4), 1);
      rows[i] = _mm512_insertf32x4(rows[i], quarter(8), 2);
      rows[i] = _mm512_insertf32x4(rows[i], quarter(12), 3);
    }
    const auto wide = [](__m512 v) { return _mm512_castps_pd(v); };
    const __m512d low0 = wide(_mm512_unpacklo_ps(rows[0], rows[1])), low1 = wide(_mm512_unpacklo_ps(rows[2], rows[3]));
    const __m512d high0 = wide(_mm512_unpackhi_ps(rows[0], rows[1])),
                  high1 = wide(_mm512_unpackhi_ps(rows[2], rows[3]));
    float* out = to + j * to_stride;
    _mm512_storeu_pd(out, _mm512_unpacklo_pd(low0, low1));
    _mm512_storeu_pd(out + to_stride, _mm512_unpackhi_pd(low0, low1));
    _mm512_storeu_pd(out + 2 * to_stride, _mm512_unpacklo_pd(high0, high1));
    _mm512_storeu_pd(out + 3 * to_stride, _mm512_unpackhi_pd(high0, high1));
  }
#else
  for (int64_t j = 0; j < kSquareSide; ++j)
    for (int64_t i = 0; i < kSquareSide; ++i) to[j * to_stride + i] = from[i * from_stride + j];
#endif
}

// The same for any number of rows and columns of `from`.
template <class S>
inline void transpose(const S* from, int64_t from_stride, int64_t rows, int64_t columns, S* to, int64_t to_stride) {
  for (int64_t i = 0; i < rows; i += kSquareSide)
    for (int64_t j = 0; j < columns; j += kSquareSide) {
      const int64_t height = std::min(kSquareSide, rows - i), width = std::min(kSquareSide, columns - j);
      const S* corner = from + i * from_stride + j;
      S* out = to + j * to_stride + i;
      if constexpr (std::is_same_v<S, float>)
        if (height == kSquareSide && width == kSquareSide) {
          transpose_square(corner, from_stride, out, to_stride);
          continue;
        }
      for (int64_t a = 0; a < height; ++a)
        for (int64_t b = 0; b < width; ++b) out[b * to_stride + a] = corner[a * from_stride + b];
    }
}

// Past the caches, for what is too large to be read from them again: the line is not fetched before it is written. `p`
// is aligned to a register. fence() makes such stores visible before what follows.
template <class S>
inline void stream(S* p, Vector<S> v) {
#if defined(__AVX512F__) && FUSED_RESNET_VECTOR_BYTES == 64
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bit_cast<__m512i>(v));
#elif defined(__AVX2__) && FUSED_RESNET_VECTOR_BYTES == 32
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(v));
#else
  store(p, v);
#endif
}

inline void fence() {
#if defined(__SSE__)
  _mm_sfence();
#endif
}

// Small whole numbers, one byte each, as lanes of S. A copy of constant length is one instruction, any other a call.
template <class S>
inline Vector<S> load_bytes(const uint8_t* p, int n) {
  constexpr int N = kLanes<S>;
  if constexpr (std::is_same_v<S, float>)
    if (n == N) return convert<float, N>(widen<int32_t>(p));
  typename VectorOf<uint8_t, N>::type bytes{};
  std::memcpy(&bytes, p, std::min<size_t>(n, sizeof(bytes)));
  return convert<S, N>(bytes);
}

template <class S>
inline void store_bytes(uint8_t* p, Vector<S> v, int n) {
  constexpr int N = kLanes<S>;
  if constexpr (std::is_same_v<S, float>)
    if (n == N) return narrow(convert<int32_t, N>(v), p);
  const auto bytes = convert<uint8_t, N>(v);
  std::memcpy(p, &bytes, std::min<size_t>(n, sizeof(bytes)));
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
