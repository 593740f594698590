// What each kernel's launches asked for, whether they ran or were captured: see launches.py.
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "cuda_on_cpu.h"
#include "fiber.h"

namespace cuda_on_cpu {

namespace {

using Request = std::pair<size_t, size_t>;  // threads of a block, bytes of dynamic shared memory

UnseenMutex mutex;
std::map<const void*, std::set<Request>> requests;  // by kernel

}  // namespace

void note_launch(const void* kernel, size_t threads, size_t dynamic_shared_bytes) {
  const std::lock_guard<UnseenMutex> lock(mutex);
  requests[kernel].insert({threads, dynamic_shared_bytes});
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

// Calls back for each, with the kernel's place in the module, as a symbol table has it.
extern "C" void cuda_on_cpu_each_launch(void (*call)(size_t place, size_t threads, size_t dynamic_shared_bytes)) {
  const std::lock_guard<UnseenMutex> lock(mutex);
  for (const auto& [kernel, asked] : requests) {
    Dl_info module;
    dladdr(kernel, &module);
    const size_t place = reinterpret_cast<uintptr_t>(kernel) - reinterpret_cast<uintptr_t>(module.dli_fbase);
    for (const auto& [threads, bytes] : asked) call(place, threads, bytes);
  }
}
