// Products of bfloat16 matrices in tile registers (Intel AMX), and floats as sums of bfloat16 numbers.
//
// A float is the sum of three bfloat16 parts, all 24 bits of it, or to 16 bits of two: a = a0 + a1 + a2, each part the
// nearest to what the ones before have left. A product of floats is then the sum of the products of their parts, of
// which those below the last bit are left out (Henry, Tang, Heinecke 2019, "Leveraging the bfloat16 Artificial
// Intelligence Datatype For Higher-Precision Computations"). The sums are in float. Numbers below 1e-38 count as zero.
//
// Without the unit the registers are plain arrays: the specification, which runs everywhere. A processor that has dot
// products of bfloat16 pairs (AVX512_BF16) multiplies by those where one part is enough: twice as fast as floats.
#pragma once

#include <cstring>
#include <iterator>
#include <type_traits>

#include "float16.h"
#include "simd.h"

// Where the unit is not built for, but the compiler knows the instruction: GCC 11 and Clang 12 do.
#if defined(__AVX512F__) && !defined(__AMX_BF16__) && (defined(__clang__) || __GNUC__ >= 11)
#define FUSED_RESNET_DOT_PRODUCTS 1
#endif

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

constexpr int kTileSide = 16;       // rows, and columns of sums, of a register
constexpr int64_t kTileTerms = 32;  // terms of a sum in a row of a register, 64 bytes
constexpr int64_t kTileBytes = 64;  // of a row
constexpr int64_t kTileNumbers = kTileSide * kTileTerms;

// Eight registers. `a` has rows of 32 terms; `b` rows of pairs of terms, for 16 columns beside each other.
class Tiles {
 public:
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

#if defined(__AMX_BF16__)
  // Whoever used the registers before finds their shapes again: oneDNN does not set them anew.
  Tiles() {
    asm volatile("sttilecfg %0" : "=m"(before_));
    asm volatile("ldtilecfg %0" ::"m"(shapes_));
  }
  ~Tiles() { asm volatile("ldtilecfg %0" ::"m"(before_)); }

  template <int t>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(t));
  }
  template <int t>
  void load(const void* from, int64_t row_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(t) : "memory");
  }
  template <int t>
  void store(void* to, int64_t row_bytes) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(t) : "memory");
  }
  // sums += a b
  template <int sums, int a, int b>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(a), "i"(b));
  }

 private:
  struct alignas(64) Shapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  Shapes shapes_, before_;
#else
  Tiles() = default;

  template <int t>
  void zero() {
    std::memset(data_[t], 0, sizeof(data_[t]));
  }
  template <int t>
  void load(const void* from, int64_t row_bytes) {
    for (int i = 0; i < kTileSide; ++i)
      std::memcpy(data_[t] + i * kTileBytes, static_cast<const char*>(from) + i * row_bytes, kTileBytes);
  }
  template <int t>
  void store(void* to, int64_t row_bytes) const {
    for (int i = 0; i < kTileSide; ++i)
      std::memcpy(static_cast<char*>(to) + i * row_bytes, data_[t] + i * kTileBytes, kTileBytes);
  }
  template <int sums, int a, int b>
  void multiply() {
    float total[kTileSide][kTileSide];
    BFloat16 left[kTileSide][kTileTerms], right[kTileSide][kTileTerms];
    std::memcpy(total, data_[sums], sizeof(total));
    std::memcpy(left, data_[a], sizeof(left));
    std::memcpy(right, data_[b], sizeof(right));
    // As the unit rounds (TDPBF16PS): even and odd terms are sums of their own, which start at zero.
    for (int i = 0; i < kTileSide; ++i) {
      float even[kTileSide] = {}, odd[kTileSide] = {};
      for (int k = 0; k < kTileSide; ++k) {
        const float first = to_float(left[i][2 * k]), second = to_float(left[i][2 * k + 1]);
        for (int j = 0; j < kTileSide; ++j) {
          even[j] += first * to_float(right[k][2 * j]);
          odd[j] += second * to_float(right[k][2 * j + 1]);
        }
      }
      for (int j = 0; j < kTileSide; ++j) total[i][j] += even[j] + odd[j];
    }
    std::memcpy(data_[sums], total, sizeof(total));
  }

 private:
  alignas(64) char data_[8][kTileSide * kTileBytes];
#endif
};

// Writes 16 pairs, first[i] beside second[i], as kParts rows of bfloat16, `part` elements apart. Rounds to nearest,
// halves away from zero.
template <int kParts>
inline void split_pairs(const float* first, const float* second, BFloat16* to, int64_t part) {
  constexpr int N = kLanes<float>;
  using Bits = typename VectorOf<uint32_t, N>::type;
  constexpr uint32_t kHalf = 0x8000u, kUpper = 0xffff0000u;
  for (int i = 0; i < kTileSide; i += N) {
    Vector<float> a = load(first + i), b = load(second + i);
#pragma GCC unroll 3
    for (int p = 0; p < kParts; ++p) {
      Bits of_a = bit_cast<Bits>(a), of_b = bit_cast<Bits>(b);
      if (p + 1 < kParts) {
        of_a += kHalf;
        of_b += kHalf;
        a -= bit_cast<Vector<float>>(of_a & kUpper);
        b -= bit_cast<Vector<float>>(of_b & kUpper);
      } else {  // the addition may take a NaN for a number, but what that left is a NaN
        of_a = a == a ? of_a + kHalf : of_a;
        of_b = b == b ? of_b + kHalf : of_b;
      }
      const Bits both = (of_a >> 16) | (of_b & kUpper);
      std::memcpy(to + p * part + 2 * i, &both, sizeof(both));
    }
  }
}

// The products of parts (of a, of b) that count, small ones first as far as no register is loaded more often for it.
struct PartPair {
  int a, b;
};
template <int kParts>
struct PartPairs;
template <>
struct PartPairs<1> {
  static constexpr PartPair list[] = {{0, 0}};
};
template <>
struct PartPairs<2> {
  static constexpr PartPair list[] = {{1, 0}, {0, 0}, {0, 1}};
};
template <>
struct PartPairs<3> {
  static constexpr PartPair list[] = {{2, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 2}, {0, 0}};
};

// One side of a product: registers' rows `row_bytes` apart, neighbouring registers and parts so many elements.
struct Operand {
  const BFloat16* data;
  int64_t row_bytes, tile, part;
};

namespace tile_registers {

constexpr int kA = 4, kB = 6;  // registers 0 to 3 are sums

template <int kParts, int kRows, int kColumns, int i = 0>
inline void multiply_step(Tiles& tiles, const Operand& a, const Operand& b) {
  constexpr auto& pairs = PartPairs<kParts>::list;
  constexpr PartPair now = pairs[i], before = pairs[i > 0 ? i - 1 : 0];
  if constexpr (i == 0 || now.a != before.a) {
    const BFloat16* from = a.data + now.a * a.part;
    tiles.load<kA>(from, a.row_bytes);
    if constexpr (kRows > 1) tiles.load<kA + 1>(from + a.tile, a.row_bytes);
  }
  if constexpr (i == 0 || now.b != before.b) {
    const BFloat16* from = b.data + now.b * b.part;
    tiles.load<kB>(from, b.row_bytes);
    if constexpr (kColumns > 1) tiles.load<kB + 1>(from + b.tile, b.row_bytes);
  }
  tiles.multiply<0, kA, kB>();
  if constexpr (kColumns > 1) tiles.multiply<1, kA, kB + 1>();
  if constexpr (kRows > 1) tiles.multiply<2, kA + 1, kB>();
  if constexpr (kRows > 1 && kColumns > 1) tiles.multiply<3, kA + 1, kB + 1>();
  if constexpr (i + 1 < static_cast<int>(std::size(pairs))) multiply_step<kParts, kRows, kColumns, i + 1>(tiles, a, b);
}

template <int kRows, int kColumns, class F>
inline void each_sum(const F& f) {
  f(std::integral_constant<int, 0>{}, 0, 0);
  if constexpr (kColumns > 1) f(std::integral_constant<int, 1>{}, 0, 1);
  if constexpr (kRows > 1) f(std::integral_constant<int, 2>{}, 1, 0);
  if constexpr (kRows > 1 && kColumns > 1) f(std::integral_constant<int, 3>{}, 1, 1);
}

}  // namespace tile_registers

struct Nothing {
  void operator()(int64_t) const {}
};

#if defined(FUSED_RESNET_DOT_PRODUCTS)
inline const bool has_dot_products = __builtin_cpu_supports("avx512bf16");

constexpr int kDotRows = 8;  // whose sums are in vector registers

// sums[kDotRows, 16 kColumns] = the sum over `count` steps of a b, or that added to them, as in multiply_steps.
template <int kColumns>  // a function of its own, or GCC 12 keeps the sums in memory
__attribute__((noinline)) void dot_rows(const BFloat16* a, int64_t a_row, const int64_t* steps, int64_t count,
                                        const Operand& b, int64_t b_step, float* sums, int64_t sums_stride, bool adds) {
  const int64_t b_row = b.row_bytes / static_cast<int64_t>(sizeof(BFloat16));
  Vector<float> held[kDotRows][kColumns] = {};
  for (int64_t k = 0; k < count; ++k) {
    const BFloat16 *left = a + steps[k], *right = b.data + k * b_step;
    for (int64_t pair = 0; pair < kTileSide; ++pair) {
      __m512i columns[kColumns];
#pragma GCC unroll 2
      for (int j = 0; j < kColumns; ++j) columns[j] = _mm512_loadu_si512(right + j * b.tile + pair * b_row);
#pragma GCC unroll 8
      for (int i = 0; i < kDotRows; ++i) {
        int terms;
        std::memcpy(&terms, left + i * a_row + 2 * pair, sizeof(terms));
        const __m512i factors = _mm512_set1_epi32(terms);
#pragma GCC unroll 2
        for (int j = 0; j < kColumns; ++j)
          asm("vdpbf16ps %2, %1, %0" : "+v"(held[i][j]) : "v"(columns[j]), "v"(factors));
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kDotRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) {
      float* to = sums + i * sums_stride + j * kTileSide;
      store(to, adds ? load(to) + held[i][j] : held[i][j]);
    }
}

// multiply_steps below without tile registers; what there is to do meanwhile is done between rows.
template <int kRows, int kColumns, class F>
inline void multiply_steps_by_dots(const Operand& a, const int64_t* steps, int64_t count, const Operand& b,
                                   int64_t b_step, float* sums, int64_t sums_stride, bool adds, const F& meanwhile) {
  const int64_t a_row = a.row_bytes / static_cast<int64_t>(sizeof(BFloat16));
  int64_t done = 0;
  for (int row = 0; row < kRows * kTileSide; row += kDotRows) {
    dot_rows<kColumns>(a.data + row / kTileSide * a.tile + row % kTileSide * a_row, a_row, steps, count, b, b_step,
                       sums + row * sums_stride, sums_stride, adds);
    for (; done < count * (row + kDotRows) / (kRows * kTileSide); ++done) meanwhile(done);
  }
}
#else
constexpr bool has_dot_products = false;
#endif

// sums[16 kRows, 16 kColumns] = the sum over `count` steps of a b, or that added to them. In step k, `a` is
// steps[k] elements further on than at first, `b` k b_step. After each step's products, which take the unit a while, it
// calls meanwhile(k) for what the vector units have to do.
template <int kParts, int kRows, int kColumns, class F = Nothing>
inline void multiply_steps(Tiles& tiles, Operand a, const int64_t* steps, int64_t count, Operand b, int64_t b_step,
                           float* sums, int64_t sums_stride, bool adds, const F& meanwhile = {}) {
#if defined(FUSED_RESNET_DOT_PRODUCTS)
  if constexpr (kParts == 1)  // with more parts they would be slower than products of floats
    if (has_dot_products)
      return multiply_steps_by_dots<kRows, kColumns>(a, steps, count, b, b_step, sums, sums_stride, adds, meanwhile);
#endif
  const int64_t row_bytes = sums_stride * static_cast<int64_t>(sizeof(float));
  const auto at = [&](int i, int j) { return sums + i * kTileSide * sums_stride + j * kTileSide; };
  tile_registers::each_sum<kRows, kColumns>([&](auto t, int i, int j) {
    adds ? tiles.load<decltype(t)::value>(at(i, j), row_bytes) : tiles.zero<decltype(t)::value>();
  });
  const BFloat16* first = a.data;
  for (int64_t k = 0; k < count; ++k, b.data += b_step) {
    a.data = first + steps[k];
    tile_registers::multiply_step<kParts, kRows, kColumns>(tiles, a, b);
    meanwhile(k);
  }
  tile_registers::each_sum<kRows, kColumns>(
      [&](auto t, int i, int j) { tiles.store<decltype(t)::value>(at(i, j), row_bytes); });
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
