// The part of CUDA C++ that the kernels use, for a plain C++17 compiler: the same kernel source runs on a CPU, under
// the sanitizers. One block runs at a time and each of its threads is a fiber, so that barriers, warp collectives and
// tensor-core instructions need no threads of the system, and a run is the same for the same seed.
//
// csrc/cuda/cuda_compat.h includes this file where nvcc does not compile. The toolkit's headers give the types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline  // where the compiler likes: it takes two thirds of the time
#undef __shared__
#define __shared__ use_SHARED_ARRAY_or_DYNAMIC_SHARED

namespace cuda_on_cpu {

// What a thread shows to its warp while it waits at a collective.
struct Lane {
  uint3 index;  // threadIdx
  unsigned lane, warp;
  unsigned mask;
  const char* collective;  // where equal strings meet
  const char* file;
  int line;
  int argument;  // source lane of a shuffle, transposition of a matrix
  unsigned bytes;
  alignas(16) unsigned char in[64], out[64];
};

// Runs once, when every lane of the mask has arrived; absent lanes are null.
using Combine = void (*)(Lane* const (&lanes)[32], unsigned mask);

extern Lane* self;  // one block runs at a time, one thread of it
extern uint3 block_index;
extern dim3 block_size, grid_size;

// Ends the launch with this error, which launch() then returns and error_text() words.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
const char* error_text(cudaError_t);

cudaError_t run_grid(dim3 grid, dim3 block, size_t dynamic_shared_bytes, void (*body)(void*), void* arguments);

// Keeps what a launch asks for: see launches.cpp.
void note_launch(const void* kernel, size_t threads, size_t dynamic_shared_bytes);

// Runs work, or keeps it where the stream is being captured: see streams.cpp.
cudaError_t submit(cudaStream_t stream, std::function<cudaError_t()> work, const void* arguments, size_t bytes);

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                   cudaStream_t stream, Arguments... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  note_launch(reinterpret_cast<const void*>(kernel), size_t(block.x) * block.y * block.z, dynamic_shared_bytes);
  const auto call = std::make_shared<Call>(Call{kernel, {Parameters(arguments)...}});
  const auto run = [=] {
    const auto body = [](void* c) { std::apply(static_cast<Call*>(c)->kernel, static_cast<Call*>(c)->arguments); };
    return run_grid(grid, block, dynamic_shared_bytes, body, call.get());
  };
  return submit(stream, run, &call->arguments, sizeof(call->arguments));
}

inline cudaError_t zero_async(void* data, size_t bytes, cudaStream_t stream) {
  const auto run = [=] {
    std::memset(data, 0, bytes);
    return cudaSuccess;
  };
  return submit(stream, run, &data, sizeof(data));
}

cudaError_t get_device(int* device);
cudaError_t set_device(int device);

// What a launcher must not call.
cudaError_t allocate(void** data, size_t bytes);
cudaError_t release(void* data);
cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind);
cudaError_t synchronize();
cudaError_t synchronize_stream(cudaStream_t);

void check_aligned(const void* p, size_t bytes, const char* what);

void block_barrier(const char* file, int line, int site);
void warp_collective(unsigned mask, const char* name, const char* file, int line, Combine, bool orders_memory);
void warp_barrier(unsigned mask, const char* file, int line);
unsigned ballot(unsigned mask, bool predicate, const char* file, int line);
void shuffle_bytes(unsigned mask, const void* in, void* out, unsigned bytes, int source, const char* name,
                   const char* file, int line);

void* static_shared(const void* key, size_t bytes);  // fresh and poisoned for each block
void* dynamic_shared();

void cp_async(void* shared, const void* global, unsigned bytes, unsigned valid_bytes);
void cp_async_commit();
void cp_async_wait(unsigned pending);

void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
uint32_t to_tf32(float value);
void exchange_matrices(uint32_t (&d)[4], const void* row, const uint32_t (&data)[4], bool transpose);

inline void ldmatrix_x4(uint32_t (&d)[4], const void* row, bool transpose) {
  check_aligned(row, 16, "ldmatrix");
  uint32_t data[4];  // read here, in the kernel's own code, where the sanitizers see it
  for (int i = 0; i < 4; ++i) data[i] = static_cast<const uint32_t*>(row)[i];
  exchange_matrices(d, row, data, transpose);
}

enum class Shuffle { index, exclusive_or, down, up };

template <class T>
T shuffle(Shuffle kind, unsigned mask, T value, int operand, int width, const char* file, int line) {
  static_assert(sizeof(T) <= 64 && std::is_trivially_copyable_v<T>);
  const int lane = static_cast<int>(self->lane), first = lane & ~(width - 1);
  int source = first + (operand & (width - 1));
  const char* name = "__shfl_sync";
  if (kind == Shuffle::exclusive_or) {
    source = lane ^ operand, name = "__shfl_xor_sync";
    if (source >= first + width) source = lane;
  } else if (kind == Shuffle::down) {
    source = lane + operand, name = "__shfl_down_sync";
    if (source >= first + width) source = lane;
  } else if (kind == Shuffle::up) {
    source = lane - operand, name = "__shfl_up_sync";
    if (source < first) source = lane;
  }
  T result;
  shuffle_bytes(mask, &value, &result, sizeof(T), source, name, file, line);
  return result;
}

// A fence orders memory between threads that meet in an atomic: release before it, acquire after it.
void fence();
void before_atomic(const void* address);
void after_atomic(const void* address);

template <class T, class F>
T atomic_update(T* address, F update) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static_assert(sizeof(T) == sizeof(Bits));
  before_atomic(address);
  auto* bits = reinterpret_cast<Bits*>(address);
  Bits old_bits = __atomic_load_n(bits, __ATOMIC_RELAXED), new_bits;
  T old;
  do {
    std::memcpy(&old, &old_bits, sizeof(T));
    const T updated = update(old);
    std::memcpy(&new_bits, &updated, sizeof(T));
  } while (!__atomic_compare_exchange_n(bits, &old_bits, new_bits, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  after_atomic(address);
  return old;
}

inline unsigned mask_or_all(unsigned mask = ~0u) {
  return mask;
}
inline int width_or_warp(int width = 32) {
  return width;
}

}  // namespace cuda_on_cpu

#define SHARED_ARRAY(T, name, size) \
  static const char name##_key = 0; \
  auto& name = *static_cast<T(*)[size]>(::cuda_on_cpu::static_shared(&name##_key, sizeof(T) * (size)))
#define DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::cuda_on_cpu::dynamic_shared())

#define cudaMalloc ::cuda_on_cpu::allocate
#define cudaFree ::cuda_on_cpu::release
#define cudaMemcpy ::cuda_on_cpu::copy
#define cudaDeviceSynchronize ::cuda_on_cpu::synchronize
#define cudaStreamSynchronize ::cuda_on_cpu::synchronize_stream

#define threadIdx (::cuda_on_cpu::self->index)
#define blockIdx (::cuda_on_cpu::block_index)
#define blockDim (::cuda_on_cpu::block_size)
#define gridDim (::cuda_on_cpu::grid_size)
#define __syncthreads() ::cuda_on_cpu::block_barrier(__FILE__, __LINE__, __COUNTER__)
#define __syncwarp(...) ::cuda_on_cpu::warp_barrier(::cuda_on_cpu::mask_or_all(__VA_ARGS__), __FILE__, __LINE__)
#define CUDA_ON_CPU_SHUFFLE(kind, mask, value, operand, ...)                      \
  ::cuda_on_cpu::shuffle(::cuda_on_cpu::Shuffle::kind, mask, value, int(operand), \
                         ::cuda_on_cpu::width_or_warp(__VA_ARGS__), __FILE__, __LINE__)
#define __shfl_sync(mask, value, source, ...) CUDA_ON_CPU_SHUFFLE(index, mask, value, source, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, bits, ...) CUDA_ON_CPU_SHUFFLE(exclusive_or, mask, value, bits, __VA_ARGS__)
#define __shfl_down_sync(mask, value, delta, ...) CUDA_ON_CPU_SHUFFLE(down, mask, value, delta, __VA_ARGS__)
#define __shfl_up_sync(mask, value, delta, ...) CUDA_ON_CPU_SHUFFLE(up, mask, value, delta, __VA_ARGS__)
#define __ballot_sync(mask, predicate) ::cuda_on_cpu::ballot(mask, predicate, __FILE__, __LINE__)
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0)
#define __all_sync(mask, predicate) (__ballot_sync(mask, predicate) == (mask))

template <class T>
inline T atomicAdd(T* address, std::common_type_t<T> value) {
  return cuda_on_cpu::atomic_update(address, [value](T old) -> T { return old + value; });
}

inline void __threadfence() {
  cuda_on_cpu::fence();
}

inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline float __uint_as_float(unsigned bits) {
  float f;
  std::memcpy(&f, &bits, sizeof(f));
  return f;
}
