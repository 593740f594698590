// Kernels that try the runtime itself: what it must compute, and what it must refuse.
//
// The functions at the end are called through ctypes (probes.py): what fails is returned as text, null is success.
#include <string>

#include "columns.h"
#include "cuda_compat.h"

using namespace fused_resnet;

namespace {

__global__ void one_syncthreads_in_each_branch(int* out) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void return_before_syncthreads(int* out) {
  if (threadIdx.x >= 16) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void syncthreads_against_shuffle(int* out) {
  if (threadIdx.x == 0) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __shfl_sync(~0u, int(threadIdx.x), 0);
  }
}

__global__ void shuffle_by_half_a_warp(int* out) {
  int value = int(threadIdx.x);
  if (value < 16) value = __shfl_down_sync(~0u, value, 1);
  out[threadIdx.x] = value;
}

__global__ void shuffle_from_outside_the_mask(int* out) {
  int value = int(threadIdx.x);
  if (value < 16) value = __shfl_sync(0xffffu, value, 20);
  out[threadIdx.x] = value;
}

__global__ void mask_without_its_own_lane(int* out) {
  out[threadIdx.x] = int(__ballot_sync(0xffffu, true));
}

__global__ void misaligned_load(int* out) {
  out[0] = int(load_vector<uint4>(out + 1).x);
}

__global__ void static_shared_over_the_limit(int* out) {
  SHARED_ARRAY(int, shared, (48 << 10) / 4 + 1);
  shared[threadIdx.x] = 1;
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void dynamic_shared_over_the_limit(int* out) {
  DYNAMIC_SHARED(int, shared);
  out[threadIdx.x] = shared[threadIdx.x] = 1;
}

__global__ void copy_that_nobody_waits_for(int* out) {
  SHARED_ARRAY(int, shared, 32);
  ptx::cp_async<4>(&shared[threadIdx.x], out + threadIdx.x, 4);
  ptx::cp_async_commit();
}

__global__ void copy_from_a_misaligned_address(int* out) {
  SHARED_ARRAY(int, shared, 4);
  ptx::cp_async<16>(shared, out + 1, 16);
}

// Writes what shared memory holds before anybody writes it.
__global__ void unwritten_shared(int* out) {
  SHARED_ARRAY(int, shared, 32);
  out[threadIdx.x] = shared[threadIdx.x];
}

// Makes the same of it whatever it holds.
__global__ void unwritten_shared_compared(int* out) {
  SHARED_ARRAY(int, shared, 33);
  shared[threadIdx.x] = 1;
  out[threadIdx.x] = shared[threadIdx.x + 1] != 123456;
}

// Reads a copy before it is waited for, then after: the first must not be the value.
__global__ void read_before_and_after_the_wait(int* out) {
  SHARED_ARRAY(int, shared, 64);
  shared[threadIdx.x] = shared[32 + threadIdx.x] = 7;
  const int source = out[threadIdx.x];
  ptx::cp_async<4>(&shared[threadIdx.x], out + threadIdx.x, 4);
  ptx::cp_async<4>(&shared[32 + threadIdx.x], out + threadIdx.x, 0);  // nothing valid: zeros
  ptx::cp_async_commit();
  const bool early = shared[threadIdx.x] == source;
  ptx::cp_async_wait<0>();
  const bool late = shared[threadIdx.x] == source && shared[32 + threadIdx.x] == 0;
  out[threadIdx.x] = !early && late;
}

__global__ void shuffles_and_votes(int* out) {
  const int lane = int(threadIdx.x);
  const bool right =
      __shfl_xor_sync(~0u, lane, 5) == (lane ^ 5) && __shfl_up_sync(~0u, lane, 3) == (lane < 3 ? lane : lane - 3) &&
      __shfl_down_sync(~0u, lane, 3, 8) == (lane % 8 > 4 ? lane : lane + 3) &&
      __shfl_sync(~0u, lane, 2, 16) == lane / 16 * 16 + 2 && __ballot_sync(~0u, lane % 2) == 0xaaaaaaaau &&
      __any_sync(~0u, lane == 9) && !__all_sync(~0u, lane == 9);
  out[lane] = right;
}

// One block adds what the other wrote, and the last to arrive sees both.
template <bool kFence>
__global__ void handover(int* out) {
  out[2 + blockIdx.x] = int(blockIdx.x) + 1;
  if (kFence) __threadfence();
  if (atomicAdd(out, 1) == 1) {
    __threadfence();
    out[1] = out[2] + out[3];
  }
}

// A race between blocks, of one thread with the same of another block.
__global__ void every_block_writes(int* out) {
  if (threadIdx.x < 32) out[threadIdx.x] = 1;
}

// c[16, 8] = a[16, 16] b[8, 16]^T, both through ldmatrix.
template <class T, void (*kMultiply)(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2])>
__global__ void multiply_16_bit(const T* a, const T* b, float* c) {
  SHARED_ARRAY(T, shared_a, 16 * 16);
  SHARED_ARRAY(T, shared_b, 16 * 16);  // rows 8 to 15 feed the two matrices of ldmatrix_x4 that nobody uses
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 256; i += 32) shared_a[i] = a[i], shared_b[i] = b[i % 128];
  __syncthreads();
  uint32_t fa[4], fb[4], transposed[4];
  ptx::ldmatrix_x4<false>(fa, shared_a + lane % 16 * 16 + lane / 16 * 8);
  ptx::ldmatrix_x4<false>(fb, shared_b + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
  ptx::ldmatrix_x4<true>(transposed, shared_b + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
  const uint32_t two[2] = {fb[0], fb[1]};
  float d[4] = {};
  kMultiply(d, fa, two);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
  // Lane 4 g + t holds elements [2 t][g] and [2 t + 1][g] of a transposed matrix.
  const auto* pair = reinterpret_cast<const T*>(&transposed[1]);
  const int row = lane % 4 * 2, column = 8 + lane / 4;
  if (float(pair[0]) != float(shared_b[row * 16 + column]) ||
      float(pair[1]) != float(shared_b[(row + 1) * 16 + column]))
    c[0] = -1e9f;
}

// c[16, 8] = a[16, 8] b[8, 8]^T
__global__ void multiply_tf32(const float* a, const float* b, float* c) {
  const int lane = int(threadIdx.x), g = lane / 4, t = lane % 4;
  const uint32_t fa[4] = {ptx::to_tf32(a[g * 8 + t]), ptx::to_tf32(a[(g + 8) * 8 + t]), ptx::to_tf32(a[g * 8 + t + 4]),
                          ptx::to_tf32(a[(g + 8) * 8 + t + 4])};
  const uint32_t fb[2] = {ptx::to_tf32(b[g * 8 + t]), ptx::to_tf32(b[g * 8 + t + 4])};
  float d[4] = {};
  ptx::mma_m16n8k8_tf32(d, fa, fb);
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}

// Where the first columns' packs at `row` begin.
template <class Walk>
__global__ void columns_offsets(Walk walk, int64_t row, int64_t* out) {
  out[threadIdx.x] = walk.offset(row);
}

struct Probe {
  const char* name;
  void (*kernel)(int*);
  unsigned blocks = 1, threads = 32;
  size_t dynamic_shared_bytes = 0;
};

const Probe kProbes[] = {
    {"one_syncthreads_in_each_branch", one_syncthreads_in_each_branch},
    {"return_before_syncthreads", return_before_syncthreads},
    {"syncthreads_against_shuffle", syncthreads_against_shuffle},
    {"shuffle_by_half_a_warp", shuffle_by_half_a_warp},
    {"shuffle_from_outside_the_mask", shuffle_from_outside_the_mask},
    {"mask_without_its_own_lane", mask_without_its_own_lane},
    {"misaligned_load", misaligned_load},
    {"static_shared_over_the_limit", static_shared_over_the_limit},
    {"dynamic_shared_over_the_limit", dynamic_shared_over_the_limit, 1, 32, (99 << 10) + 1},
    {"copy_that_nobody_waits_for", copy_that_nobody_waits_for},
    {"copy_from_a_misaligned_address", copy_from_a_misaligned_address},
    {"unwritten_shared", unwritten_shared},
    {"unwritten_shared_compared", unwritten_shared_compared},
    {"read_before_and_after_the_wait", read_before_and_after_the_wait},
    {"shuffles_and_votes", shuffles_and_votes},
    {"handover", handover<true>, 2, 1},
    {"handover_without_fence", handover<false>, 2, 1},
    {"every_block_writes", every_block_writes, 2, 1024},
};

const char* text_of(cudaError_t error) {
  return error == cudaSuccess ? nullptr : error_text(error);
}

}  // namespace

extern "C" {

// Runs a probe on out[64].
const char* probe_run(const char* name, int* out) {
  for (const Probe& probe : kProbes) {
    if (std::string(name) != probe.name) continue;
    return text_of(
        launch(probe.kernel, dim3(probe.blocks), dim3(probe.threads), probe.dynamic_shared_bytes, nullptr, out));
  }
  return "no probe of this name";
}

// Calls what a launcher must not.
const char* probe_call(const char* name, void* stream) {
  const std::string call = name;
  int from = 1, to = 0;
  void* data = nullptr;
  if (call == "allocate") {
    const cudaError_t error = cudaMalloc(&data, 4);
    return text_of(error == cudaSuccess ? cudaFree(data) : error);
  }
  if (call == "free") return text_of(cudaFree(nullptr));
  if (call == "copy") return text_of(cudaMemcpy(&to, &from, sizeof(to), cudaMemcpyDefault));
  if (call == "synchronize") return text_of(cudaDeviceSynchronize());
  if (call == "synchronize_stream") return text_of(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
  return "no call of this name";
}

// c[16, 8] = a[16, depth] b[8, depth]^T by one tensor-core instruction, of float16, bfloat16 or tf32.
const char* probe_multiply(const char* type, const void* a, const void* b, float* c) {
  const auto matrices = [&](auto element, auto kernel) {
    using T = decltype(element);
    const auto *from_a = static_cast<const T*>(a), *from_b = static_cast<const T*>(b);
    return text_of(launch(kernel, dim3(1), dim3(32), 0, nullptr, from_a, from_b, c));
  };
  if (std::string(type) == "float16") return matrices(__half(), multiply_16_bit<__half, ptx::mma_m16n8k16_f16>);
  if (std::string(type) == "bfloat16") {
    return matrices(__nv_bfloat16(), multiply_16_bit<__nv_bfloat16, ptx::mma_m16n8k16_bf16>);
  }
  return matrices(float(), multiply_tf32);
}

// out = elements before the pack of 1 or 8 at `row` of each of the first eight columns of an image that is nowhere.
const char* probe_offsets(bool channels_last, bool packs, int64_t outer, int64_t channels, int64_t inner, int64_t row,
                          int64_t* out) {
  const auto of = [&](auto walk) {
    return text_of(launch(columns_offsets<decltype(walk)>, dim3(1), dim3(8), 0, nullptr, walk, row, out));
  };
  const ChannelView image{outer, channels, inner};
  if (packs) return channels_last ? of(Columns<8, true>(image)) : of(Columns<8, false>(image));
  return channels_last ? of(Columns<1, true>(image)) : of(Columns<1, false>(image));
}
}
