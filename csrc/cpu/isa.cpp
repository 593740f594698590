#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fused_resnet {

#if defined(__x86_64__) || defined(_M_X64)
namespace avx512 {
const Kernels& kernels();
}
namespace avx2 {
const Kernels& kernels();
}
#elif defined(__aarch64__)
namespace neon {
const Kernels& kernels();
}
#endif
namespace baseline {
const Kernels& kernels();
}

namespace {

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__) || defined(_M_X64)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) found.push_back(&avx512::kernels());
  if (avx2) found.push_back(&avx2::kernels());
#elif defined(__aarch64__)
  found.push_back(&neon::kernels());
#endif
  found.push_back(&baseline::kernels());
  return found;
}

const Kernels* find(const std::string& name) {
  std::string known;
  for (const Kernels* kernels : supported()) {
    if (name == kernels->isa) return kernels;
    known += std::string(known.empty() ? "" : ", ") + kernels->isa;
  }
  throw std::invalid_argument("FUSED_RESNET_ISA: expected one of " + known + " on this processor, got '" + name + "'");
}

std::atomic<const Kernels*> active{nullptr};

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : supported()) names.emplace_back(kernels->isa);
  return names;
}

const Kernels& active_kernels() {
  const Kernels* kernels = active.load(std::memory_order_acquire);
  if (!kernels) {
    const char* name = std::getenv("FUSED_RESNET_ISA");
    kernels = name && *name ? find(name) : supported().front();
    active.store(kernels, std::memory_order_release);
  }
  return *kernels;
}

void set_isa(const std::string& name) {
  active.store(find(name), std::memory_order_release);
}

}  // namespace fused_resnet
