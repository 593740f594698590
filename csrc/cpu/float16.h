// The two 16-bit storage types, and the conversions that need no instruction of their own.
#pragma once

#include <cstdint>
#include <cstring>

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float to_float(BFloat16 b) {
  const uint32_t bits = static_cast<uint32_t>(b.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// IEEE half to float: shift into place and correct the exponent's bias by a multiplication, exact for subnormals too.
inline float to_float(Float16 h) {
  const uint32_t sign = (h.bits & 0x8000u) << 16, rest = h.bits & 0x7fffu;
  uint32_t bits = rest << 13;
  float value;
  if (rest >= 0x7c00u) {
    bits |= 0x7f800000u;  // infinity or NaN
    std::memcpy(&value, &bits, 4);
  } else {
    std::memcpy(&value, &bits, 4);
    value *= 0x1p112f;  // 127 - 15
  }
  std::memcpy(&bits, &value, 4);
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Float to IEEE half, to nearest even. The addition of a power of two that is 2^13 times the half's unit in the last
// place makes the float unit do the rounding.
inline Float16 to_float16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00u;  // quiet NaN
  } else if (bits >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to 65536 or more
  } else if (bits < 0x38800000u) {
    float magnitude;  // below 2^-14: a subnormal half, a multiple of 2^-24
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    half = bits - 0x3f000000u;
  } else {
    half = (bits - 0x38000000u + 0x0fffu + ((bits >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
