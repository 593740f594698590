// Tensor-core products of 16 x 8 outputs by type, on what cuda_compat.h wraps: D += A B, fragments as in the PTX ISA.
#pragma once

#include "cuda_compat.h"

namespace fused_resnet {
namespace conv {

template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ptx::mma_m16n8k16_bf16(d, a, b);
}
template <>
__device__ __forceinline__ void mma<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ptx::mma_m16n8k16_f16(d, a, b);
}
template <>
__device__ __forceinline__ void mma<float>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ptx::mma_m16n8k8_tf32(d, a, b);
}

// Floats to tf32, to nearest: left to itself the instruction drops their low bits. 16-bit fragments stay.
template <class T>
__device__ __forceinline__ void round_fragment(uint32_t (&fragment)[4]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int e = 0; e < 4; ++e) fragment[e] = ptx::to_tf32(__uint_as_float(fragment[e]));
  }
}

}  // namespace conv
}  // namespace fused_resnet
