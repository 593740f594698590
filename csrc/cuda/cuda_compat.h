// The one CUDA header that a kernel file includes. Under nvcc it is CUDA; under a plain C++ compiler it is the runtime
// of tests/cuda_on_cpu, which runs the same source on a CPU, one fiber a thread.
//
// What the language does differently in the two is here and nowhere else: shared memory, launches, and the instructions
// that only PTX has (namespace ptx).
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_on_cpu.h"
#endif

#ifdef __CUDACC__
// `T name[size]` in shared memory, aligned for 16-byte accesses.
#define SHARED_ARRAY(T, name, size) __shared__ __align__(16) T name[size]
// The launch's dynamic shared memory as T*, 128-byte aligned.
#define DYNAMIC_SHARED(T, name)                                \
  extern __shared__ __align__(128) unsigned char name##_raw[]; \
  T* const name = reinterpret_cast<T*>(name##_raw)
#endif

namespace fused_resnet {

#ifdef __CUDACC__

// Launches and returns the launch's error; never synchronises, so that a CUDA graph can capture it.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                   cudaStream_t stream, Arguments... arguments) {
  constexpr size_t kDefaultLimitBytes = 48 << 10;  // beyond it a kernel must be told
  if (dynamic_shared_bytes > kDefaultLimitBytes) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(dynamic_shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, dynamic_shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

inline cudaError_t zero_async(void* data, size_t bytes, cudaStream_t stream) {
  return cudaMemsetAsync(data, 0, bytes, stream);
}

inline cudaError_t get_device(int* device) {
  return cudaGetDevice(device);
}

inline cudaError_t set_device(int device) {
  return cudaSetDevice(device);
}

inline const char* error_text(cudaError_t error) {
  return cudaGetErrorString(error);
}

#else

using cuda_on_cpu::error_text;
using cuda_on_cpu::get_device;
using cuda_on_cpu::launch;
using cuda_on_cpu::set_device;
using cuda_on_cpu::zero_async;

#endif

// One load or store of a whole vector (16 bytes and less): `from` must be aligned to its size.
template <class Vector>
__device__ __forceinline__ Vector load_vector(const void* from) {
#ifndef __CUDACC__
  cuda_on_cpu::check_aligned(from, sizeof(Vector), "vector load");
#endif
  return *static_cast<const Vector*>(from);
}

template <class Vector>
__device__ __forceinline__ void store_vector(void* to, const Vector& value) {
#ifndef __CUDACC__
  cuda_on_cpu::check_aligned(to, sizeof(Vector), "vector store");
#endif
  *static_cast<Vector*>(to) = value;
}

namespace ptx {

#ifdef __CUDACC__
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
#endif

// d[16, 8] += a[16, 16] b[16, 8], fragments as in the PTX ISA, "Matrix fragments for mma.m16n8k16". All 32 lanes.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  cuda_on_cpu::mma_m16n8k16_f16(d, a, b);
#endif
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  cuda_on_cpu::mma_m16n8k16_bf16(d, a, b);
#endif
}

// d[16, 8] += a[16, 8] b[8, 8] in TF32; operands come from to_tf32.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  cuda_on_cpu::mma_m16n8k8_tf32(d, a, b);
#endif
}

// Rounds to nearest, ties away from zero, to the 10 mantissa bits of TF32. Without it the tensor cores truncate.
__device__ __forceinline__ uint32_t to_tf32(float value) {
#ifdef __CUDACC__
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
  return result;
#else
  return cuda_on_cpu::to_tf32(value);
#endif
}

// Four 8x8 matrices of 16-bit elements: lane i gives the 16-byte aligned address of row i % 8 of matrix i / 8. All 32
// lanes. kTranspose hands each lane the elements of the transposed matrices.
template <bool kTranspose>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&d)[4], const void* shared_row) {
#ifdef __CUDACC__
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
  }
#else
  cuda_on_cpu::ldmatrix_x4(d, shared_row, kTranspose);
#endif
}

// Copies `valid_bytes` to shared memory without waiting, and fills the rest of kBytes with zeros; addresses are aligned
// to kBytes, and `global` must be a valid address even where nothing is read. 16 bytes bypass L1.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int valid_bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifdef __CUDACC__
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(valid_bytes)
                 : "memory");
  }
#else
  cuda_on_cpu::cp_async(shared, global, kBytes, valid_bytes);
#endif
}

// Ends a group of the copies that this thread has issued since the last.
__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_on_cpu::cp_async_commit();
#endif
}

// Waits until at most kPending groups of this thread are under way; other threads see the data after a barrier.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  cuda_on_cpu::cp_async_wait(kPending);
#endif
}

}  // namespace ptx
}  // namespace fused_resnet
