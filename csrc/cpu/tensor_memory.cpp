#include "tensor_memory.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <vector>

#include "workspace.h"

namespace fused_resnet {

namespace {

constexpr size_t kPage = 4096;

struct Block {
  size_t bytes;
  bool is_reported;  // to the profiler, which is told of its end then
};

// One range of addresses as large as the machine's memory, of which the system fills what is touched. The smallest free
// block that suffices is taken, and what is freed joins its neighbours; so what is touched grows to what a training
// step needs at most, whatever the order of its sizes.
class Heap {
 public:
  Heap() {
    rlimit limit{};  // of addresses: where they are short, others need them
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY) return;
    const auto size = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* range = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return;
    advise_huge_pages(range, size);
    touched_ = static_cast<char*>(range);
    free_[touched_] = size;
  }

  void* allocate(size_t bytes) {
    bytes = (bytes + kPage - 1) / kPage * kPage;
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it)
      if (it->second >= bytes && (best == free_.end() || it->second < best->second)) best = it;
    if (best == free_.end()) return nullptr;
    const auto [data, size] = *best;
    free_.erase(best);
    if (size > bytes) free_[data + bytes] = size - bytes;
    touched_ = std::max(touched_, data + bytes);
    used_bytes_ += bytes;
    const bool is_profiled = profiler_.is_enabled && profiler_.is_enabled();
    used_[data] = {bytes, is_profiled};
    if (is_profiled) report(data, static_cast<int64_t>(bytes));
    return data;
  }

  void free(char* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = used_.find(data);
    const Block block = found->second;
    used_.erase(found);
    used_bytes_ -= block.bytes;
    if (block.is_reported) report(data, -static_cast<int64_t>(block.bytes));
    const auto freed = free_.emplace(data, block.bytes).first;
    const auto next = std::next(freed);
    if (next != free_.end() && data + block.bytes == next->first) {
      freed->second += next->second;
      free_.erase(next);
    }
    if (freed == free_.begin()) return;
    const auto previous = std::prev(freed);
    if (previous->first + previous->second == data) {
      previous->second += freed->second;
      free_.erase(freed);
    }
  }

  TensorMemory memory() {
    const std::lock_guard<std::mutex> lock(mutex_);
    size_t kept = 0;
    each_kept([&](char* data, size_t bytes) {
      std::vector<unsigned char> is_resident((bytes + kPage - 1) / kPage);
      if (mincore(data, bytes, is_resident.data()) == 0)
        for (const unsigned char page : is_resident) kept += (page & 1) * kPage;
    });
    return {used_bytes_, kept};
  }

  void free_kept() {
    const std::lock_guard<std::mutex> lock(mutex_);
    give_back();
  }

  // A child would hold on to its copy of the kept memory while its parent writes there.
  void before_fork() {
    mutex_.lock();
    give_back();
  }
  void after_fork() { mutex_.unlock(); }

  void set_profiler(MemoryProfiler profiler) {
    const std::lock_guard<std::mutex> lock(mutex_);
    profiler_ = profiler;
  }

 private:
  template <class Action>
  void each_kept(const Action& action) {
    for (const auto& [data, bytes] : free_)
      if (data < touched_) action(data, std::min(bytes, static_cast<size_t>(touched_ - data)));
  }

  void give_back() {
    each_kept([](char* data, size_t bytes) { madvise(data, bytes, MADV_DONTNEED); });
  }

  void report(void* data, int64_t change) { profiler_.report(data, change, used_bytes_, 0, Device{}); }

  std::mutex mutex_;
  std::map<char*, size_t> free_;  // bytes by address; no two touch each other
  std::map<char*, Block> used_;
  size_t used_bytes_ = 0;
  char* touched_ = nullptr;  // the end of all blocks so far
  MemoryProfiler profiler_{};
};

// Never destroyed: tensors may outlive everything else in a process.
Heap& heap() {
  static Heap* const instance = [] {
    auto* made = new Heap;
    pthread_atfork([] { heap().before_fork(); }, [] { heap().after_fork(); }, [] { heap().after_fork(); });
    return made;
  }();
  return *instance;
}

}  // namespace

void* allocate_tensor(size_t bytes) {
  return heap().allocate(bytes);
}

void free_tensor(void* data) {
  heap().free(static_cast<char*>(data));
}

TensorMemory tensor_memory() {
  return heap().memory();
}

void free_kept_memory() {
  heap().free_kept();
}

void set_memory_profiler(MemoryProfiler profiler) {
  heap().set_profiler(profiler);
}

}  // namespace fused_resnet
