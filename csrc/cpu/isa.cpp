#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif
// The compiler may be too old for AMX.
#if (defined(__x86_64__) || defined(_M_X64)) && !defined(FUSED_RESNET_WITHOUT_AMX)
#define FUSED_RESNET_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fused_resnet {

#if defined(FUSED_RESNET_AMX)
namespace amx {
const Kernels& kernels();
}
#endif
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

#if defined(FUSED_RESNET_AMX)
// Whether there are tile registers for bfloat16, and Linux lets this process use them, which it has to be asked for.
bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAvx512Bf16 = 1u << 5;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  if (!__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) || (eax & kAvx512Bf16) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

#if defined(__x86_64__) || defined(_M_X64)
// Conversions to and from float16, which Clang 14's __builtin_cpu_supports does not know.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kF16c = 1u << 29;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & kF16c) != 0;
}
#endif

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__) || defined(_M_X64)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if defined(FUSED_RESNET_AMX)
  if (avx512 && has_amx()) found.push_back(&amx::kernels());
#endif
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
