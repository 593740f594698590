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

// Room for an image [pixels, channels]; not whole pages, for images that are read and written together not to share the
// sets of the caches.
size_t room(DType dtype, int64_t pixels, int64_t channels) {
  constexpr size_t kLine = 64, kSkew = 17 * kLine;
  return (static_cast<size_t>(pixels * channels) * bytes_of(dtype) + kLine - 1) / kLine * kLine + kSkew;
}

// Memory that is needed up to some layer.
struct Region {
  size_t begin, end, last_layer;
};

// The first place for so many bytes among the regions that layer `now` still needs.
size_t place(std::vector<Region>& regions, size_t bytes, size_t now, size_t last_layer) {
  regions.erase(
      std::remove_if(regions.begin(), regions.end(), [now](const Region& region) { return region.last_layer < now; }),
      regions.end());
  size_t begin = 0;
  auto at = regions.begin();  // in the order of their addresses
  for (; at != regions.end() && at->begin < begin + bytes; ++at) begin = at->end;
  regions.insert(at, {begin, begin + bytes, last_layer});
  return begin;
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
  lay_out();
}

void PreparedConvs::lay_out() {
  std::vector<size_t> last_readers(given_ + layers_.size(), 0);  // of each value
  for (size_t i = 0; i < layers_.size(); ++i)
    for (const int value : {layers_[i].x, layers_[i].residual})
      if (value >= 0) last_readers.at(static_cast<size_t>(value)) = i;
  std::vector<Region> regions;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const ConvArgs& conv = layers_[i].args.conv;
    const PoolShape& pool = layers_[i].pool;
    const size_t conv_bytes =
        room(conv.dtype, conv.shape.batch * conv.shape.out_height * conv.shape.out_width, conv.shape.out_channels);
    const size_t pool_bytes = room(conv.dtype, pool.batch * pool.out_height * pool.out_width, pool.channels);
    const bool pools = pool.kernel_h > 0, is_last = i + 1 == layers_.size();  // whose output is the caller's
    Place to{0, 0};
    if (pools) to.before_pool = place(regions, conv_bytes, i, i);
    if (!is_last) to.out = place(regions, pools ? pool_bytes : conv_bytes, i, last_readers[given_ + i]);
    places_.push_back(to);
    for (const Region& region : regions) bytes_ = std::max(bytes_, region.end);
  }
}

bool PreparedConvs::run(const std::vector<const void*>& given, void* out) const {
  const bool is_current = &active_kernels() == kernels_ && given.size() == given_ &&
                          std::all_of(layers_.begin(), layers_.end(), [](const PreparedLayer& layer) {
                            return filter_fingerprint(layer.args.conv, layer.args.weight) == layer.fingerprint;
                          });
  if (!is_current) return false;
  char* memory = bytes_ ? static_cast<char*>(workspace(Slot::values, bytes_)) : nullptr;
  const auto value = [&](int number) -> const void* {
    if (number < 0) return nullptr;
    const auto n = static_cast<size_t>(number);
    return n < given_ ? given[n] : memory + places_[n - given_].out;
  };
  for (size_t i = 0; i < layers_.size(); ++i) {
    const PoolShape& pool = layers_[i].pool;
    ConvBnAddActArgs args = layers_[i].args;
    args.x = value(layers_[i].x);
    args.residual = value(layers_[i].residual);
    void* to = i + 1 == layers_.size() ? out : memory + places_[i].out;
    args.out = pool.kernel_h > 0 ? memory + places_[i].before_pool : to;
    kernels_->conv_bn_add_act(args);
    if (pool.kernel_h > 0) kernels_->max_pool({args.conv.dtype, pool, args.conv.threads, args.out, to});
  }
  return true;
}

}  // namespace fused_resnet
