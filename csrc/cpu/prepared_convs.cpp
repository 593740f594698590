#include "prepared_convs.h"

#include <algorithm>
#include <cstring>

#include "isa.h"
#include "workspace.h"

namespace fused_resnet {

namespace {

size_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::float32: return 4;
    case DType::float64: return 8;
    case DType::bfloat16:
    case DType::float16: return 2;
  }
  return 0;
}

// Room for a layer's output, in whole pages.
size_t output_bytes(const ConvArgs& conv) {
  const ConvShape& s = conv.shape;
  const auto elements = static_cast<size_t>(s.batch * s.out_height * s.out_width * s.out_channels);
  return (elements * bytes_of(conv.dtype) + 4095) / 4096 * 4096;
}

}  // namespace

uint64_t filter_fingerprint(const ConvArgs& conv, const void* weight) {
  constexpr size_t kSamples = 16;
  const ConvShape& s = conv.shape;
  const FilterStrides& w = conv.strides;
  const int64_t inputs = s.channels / s.groups;
  const int64_t elements = s.out_channels * inputs * s.kernel_h * s.kernel_w;
  const int64_t last =
      (s.out_channels - 1) * w.k + (inputs - 1) * w.c + (s.kernel_h - 1) * w.r + (s.kernel_w - 1) * w.s;
  if (last + 1 != elements) return 0;
  const size_t size = conv.dtype == DType::float64 ? 8 : 4, bytes = static_cast<size_t>(elements) * size;
  uint64_t hash = 0;
  for (size_t i = 0; i < kSamples; ++i) {
    uint64_t number = 0;
    std::memcpy(&number, static_cast<const char*>(weight) + (bytes / size - 1) * i / (kSamples - 1) * size, size);
    hash = (hash ^ number) * 0x9e3779b97f4a7c15u;  // Knuth's multiplicative hash
    hash ^= hash >> 32;
  }
  return hash;
}

PreparedConvs::PreparedConvs(size_t given, std::vector<PreparedLayer> layers)
    : kernels_(&active_kernels()), layers_(std::move(layers)), given_(given) {
  for (const PreparedLayer& layer : layers_) {
    offsets_.push_back(bytes_);
    bytes_ += output_bytes(layer.args.conv);
  }
  if (!layers_.empty()) bytes_ = offsets_.back();  // the last output is the caller's
}

bool PreparedConvs::run(const std::vector<const void*>& given, void* out) const {
  const bool is_current = &active_kernels() == kernels_ && given.size() == given_ &&
                          std::all_of(layers_.begin(), layers_.end(), [](const PreparedLayer& layer) {
                            return filter_fingerprint(layer.args.conv, layer.args.weight) == layer.fingerprint;
                          });
  if (!is_current) return false;
  char* intermediates = bytes_ ? static_cast<char*>(workspace(Slot::values, bytes_)) : nullptr;
  const auto value = [&](int number) -> const void* {
    if (number < 0) return nullptr;
    const auto n = static_cast<size_t>(number);
    return n < given_ ? given[n] : intermediates + offsets_[n - given_];
  };
  for (size_t i = 0; i < layers_.size(); ++i) {
    ConvBnAddActArgs args = layers_[i].args;
    args.x = value(layers_[i].x);
    args.residual = value(layers_[i].residual);
    args.out = i + 1 == layers_.size() ? out : intermediates + offsets_[i];
    kernels_->conv_bn_add_act(args);
  }
  return true;
}

}  // namespace fused_resnet
