// Storage types, what they are computed in, and packs of them: a pack is what one thread loads or stores at once.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "../shapes.h"
#include "cuda_compat.h"

namespace fused_resnet {

// float, and double for double
template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(__half v) {
  return __half2float(v);
}
__device__ __forceinline__ float widen(__nv_bfloat16 v) {
  return __bfloat162float(v);
}
__device__ __forceinline__ float widen(float v) {
  return v;
}
__device__ __forceinline__ double widen(double v) {
  return v;
}

// To nearest, ties to even.
template <class T>
__device__ __forceinline__ T narrow(Accumulate<T> v) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(v);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(v);
  } else {
    return v;
  }
}

// Unsigned words of a given size: what loads and stores move, so that a pack is one instruction.
template <int kBytes>
struct WordsOf;
template <>
struct WordsOf<1> {
  using type = uint8_t;
};
template <>
struct WordsOf<2> {
  using type = uint16_t;
};
template <>
struct WordsOf<4> {
  using type = uint32_t;
};
template <>
struct WordsOf<8> {
  using type = uint2;
};
template <>
struct WordsOf<16> {
  using type = uint4;
};

template <class T, int kLanes>
struct Pack {
  using Words = typename WordsOf<sizeof(T) * kLanes>::type;

  T lane[kLanes];

  // `from` is aligned to the pack.
  __device__ __forceinline__ static Pack load(const T* from) {
    const Words words = load_vector<Words>(from);
    Pack pack;
    memcpy(static_cast<void*>(&pack), &words, sizeof(words));
    return pack;
  }

  __device__ __forceinline__ void store(T* to) const {
    Words words;
    memcpy(&words, static_cast<const void*>(this), sizeof(words));
    store_vector(to, words);
  }
};

// The lanes of 16 bytes.
template <class T>
constexpr int kFullLanes = 16 / sizeof(T);

inline bool aligned16(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace fused_resnet
