// Tensors of any type for the driver, filled with numbers that every type can hold.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/cpu/float16.h"
#include "../../csrc/cpu/kernels.h"

namespace fused_resnet {

inline size_t bytes_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// The type of vectors and filters beside tensors of this type.
inline DType wide(DType dtype) {
  return dtype == DType::float64 ? dtype : DType::float32;
}

class Tensor {
 public:
  Tensor(DType dtype, int64_t elements) : dtype_(dtype), elements_(elements), data_(elements * bytes_of(dtype)) {}

  // Multiples of 1/64 within [low, low + 127/64].
  static Tensor random(DType dtype, int64_t elements, double low = -1) {
    static std::mt19937 generator(1);
    Tensor t(dtype, elements);
    for (int64_t i = 0; i < elements; ++i) t.set(i, low + static_cast<double>(generator() % 128) / 64);
    return t;
  }

  void* data() { return data_.data(); }
  int64_t elements() const { return elements_; }

  double operator[](int64_t i) const {
    switch (dtype_) {
      case DType::float64: return at<double>(i);
      case DType::float32: return at<float>(i);
      case DType::float16: return to_float(at<Float16>(i));
      case DType::bfloat16: break;
    }
    const uint32_t bits = uint32_t{at<BFloat16>(i).bits} << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }

 private:
  template <class T>
  T at(int64_t i) const {
    T value;
    std::memcpy(&value, data_.data() + i * sizeof(T), sizeof(T));
    return value;
  }

  void set(int64_t i, double value) {
    const float f = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    const uint16_t upper = static_cast<uint16_t>(bits >> 16);
    const Float16 half = to_float16(f);
    const void* from = &value;
    if (dtype_ == DType::float32) from = &f;
    if (dtype_ == DType::float16) from = &half;
    if (dtype_ == DType::bfloat16) from = &upper;
    std::memcpy(data_.data() + i * bytes_of(dtype_), from, bytes_of(dtype_));
  }

  DType dtype_;
  int64_t elements_;
  std::vector<unsigned char> data_;
};

// Root mean square of the difference over that of what is wanted; NaN is an error too.
inline double relative_error(const Tensor& got, const Tensor& want) {
  double difference = 0, scale = 1e-300;
  for (int64_t i = 0; i < want.elements(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    scale += want[i] * want[i];
  }
  return std::sqrt(difference / scale);
}

struct Norms {
  Norms(DType dtype, int64_t channels)
      : mean(Tensor::random(wide(dtype), channels)),
        var(Tensor::random(wide(dtype), channels, 0.5)),
        weight(Tensor::random(wide(dtype), channels)),
        bias(Tensor::random(wide(dtype), channels)) {}

  BatchNormArgs args() { return {mean.data(), var.data(), weight.data(), bias.data(), 1e-5}; }

  Tensor mean, var, weight, bias;
};

}  // namespace fused_resnet
