// Tensor-core instructions, by the fragment layouts of the PTX ISA, and ldmatrix.
#include "scheduler.h"

namespace cuda_on_cpu {

namespace {

constexpr unsigned kAll = ~0u;

float widen_f16(uint16_t bits) {
  __half h;
  copy_unseen(&h, &bits, sizeof(bits));
  return __half2float(h);
}

float widen_bf16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float f;
  copy_unseen(&f, &wide, sizeof(wide));
  return f;
}

// The tensor cores ignore the low 13 bits of a TF32 operand.
float widen_tf32(uint32_t bits) {
  bits &= ~0x1fffu;
  float f;
  copy_unseen(&f, &bits, sizeof(bits));
  return f;
}

template <class T>
T input(const Lane* lane, int offset_bytes) {
  T value;
  copy_unseen(&value, lane->in + offset_bytes, sizeof(T));
  return value;
}

// d += a b, where lane 4 g + t holds d[g][2 t], d[g][2 t + 1], and the same of row g + 8. Its d is at 24 bytes of `in`.
template <int kDepth>
void multiply(Lane* const (&lanes)[32], const float (&a)[16][kDepth], const float (&b)[kDepth][8]) {
  ++cuda_on_cpu_work.products;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
      sum += input<float>(lanes[lane], 24 + 4 * i);
      copy_unseen(lanes[lane]->out + 4 * i, &sum, sizeof(sum));
    }
  }
}

template <float (*kWiden)(uint16_t)>
void combine_m16n8k16(Lane* const (&lanes)[32], unsigned) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const auto element = [&](int reg) { return kWiden(input<uint16_t>(lanes[lane], 4 * reg + 2 * half)); };
      const int k = 2 * t + half;
      a[g][k] = element(0), a[g + 8][k] = element(1), a[g][k + 8] = element(2), a[g + 8][k + 8] = element(3);
      b[k][g] = element(4), b[k + 8][g] = element(5);
    }
  }
  multiply(lanes, a, b);
}

void combine_m16n8k8_tf32(Lane* const (&lanes)[32], unsigned) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const auto element = [&](int reg) { return widen_tf32(input<uint32_t>(lanes[lane], 4 * reg)); };
    a[g][t] = element(0), a[g + 8][t] = element(1), a[g][t + 4] = element(2), a[g + 8][t + 4] = element(3);
    b[t][g] = element(4), b[t + 4][g] = element(5);
  }
  multiply(lanes, a, b);
}

void mma(const char* name, Combine combine, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  copy_unseen(self->in, a, 16);
  copy_unseen(self->in + 16, b, 8);
  copy_unseen(self->in + 24, d, 16);
  warp_collective(kAll, name, "", 0, combine, false);
  copy_unseen(d, self->out, 16);
}

void combine_ldmatrix(Lane* const (&lanes)[32], unsigned) {
  const bool transpose = lanes[0]->argument;
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int half = 0; half < 2; ++half) {
        const int major = lane / 4, minor = lane % 4 * 2 + half;
        const int row = transpose ? minor : major, column = transpose ? major : minor;
        copy_unseen(lanes[lane]->out + 4 * matrix + 2 * half, lanes[8 * matrix + row]->in + 2 * column, 2);
      }
    }
  }
}

}  // namespace

void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma("mma.m16n8k16.f16", combine_m16n8k16<widen_f16>, d, a, b);
}

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma("mma.m16n8k16.bf16", combine_m16n8k16<widen_bf16>, d, a, b);
}

void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma("mma.m16n8k8.tf32", combine_m16n8k8_tf32, d, a, b);
}

uint32_t to_tf32(float value) {
  uint32_t bits;
  copy_unseen(&bits, &value, sizeof(bits));
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return (finite ? bits + 0x1000u : bits) & ~0x1fffu;
}

void exchange_matrices(uint32_t (&d)[4], const void*, const uint32_t (&data)[4], bool transpose) {
  copy_unseen(self->in, data, 16);
  self->argument = transpose;
  warp_collective(kAll, transpose ? "ldmatrix.trans" : "ldmatrix", "", 0, combine_ldmatrix, false);
  copy_unseen(d, self->out, 16);
}

}  // namespace cuda_on_cpu
