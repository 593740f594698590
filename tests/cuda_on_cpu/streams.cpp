// Devices, streams and their capture into graphs. Work runs when it is submitted, unless its stream is being captured:
// then it is kept with its arguments, and runs when the graph is replayed.
//
// As in CUDA (stream capture mode "global"): a stream takes launches only while its device is current; while one is
// captured, the legacy stream 0 takes none, and nothing may allocate, free, copy or synchronise. What is refused ends
// the capture too. Memory belongs to a device where a test has placed it; a launch that is given an address of another
// device's fails, for the words of its arguments are looked at.
//
// Host threads may launch at once; one grid runs at a time. Those that have joined for it take turns: none launches
// twice before another has launched, so that what they share by mistake is used by one between two uses of the other.
#include <sched.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_on_cpu.h"
#include "fiber.h"

namespace cuda_on_cpu {

namespace {

constexpr int kDevices = 2;

using Work = std::function<cudaError_t()>;
using Graph = std::vector<Work>;

struct Stream {
  int device;
};

struct Range {
  uintptr_t end;
  int device;
};

UnseenMutex mutex;
thread_local int current_device = 0;
thread_local bool takes_turns = false;
int turn_takers = 0;
bool somebody_launches = false;        // of those that take turns
const void* last_to_launch = nullptr;  // a host thread, by the address of what is its own
std::map<uintptr_t, Range> placed;     // by its first address
Stream* captured_stream;
std::unique_ptr<Graph> captured;
bool capture_is_broken, capture_is_kept;

cudaError_t refuse_while_capturing() {
  const std::lock_guard<UnseenMutex> lock(mutex);
  if (!captured) return cudaSuccess;
  capture_is_broken = true;
  return cudaErrorStreamCaptureUnsupported;
}

bool is_of_another_device(uintptr_t address) {
  auto range = placed.upper_bound(address);
  if (range == placed.begin()) return false;
  --range;
  return address < range->second.end && range->second.device != current_device;
}

// From when nobody else launches, and it is this host thread's turn, to the end of the launch.
class Turn {
 public:
  Turn() {
    while (takes_turns && !begin()) sched_yield();
  }
  ~Turn() {
    const std::lock_guard<UnseenMutex> lock(mutex);
    if (takes_turns) somebody_launches = false;
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  static bool begin() {
    const std::lock_guard<UnseenMutex> lock(mutex);
    if (somebody_launches || (turn_takers > 1 && last_to_launch == &takes_turns)) return false;
    last_to_launch = &takes_turns;
    return somebody_launches = true;
  }
};

// Keeps the work where its stream is being captured; leaves it where it is to run now.
cudaError_t check_and_keep(Stream* stream, Work& work, const void* arguments, size_t bytes) {
  const std::lock_guard<UnseenMutex> lock(mutex);
  if (stream && stream->device != current_device) return cudaErrorInvalidResourceHandle;
  for (size_t at = 0; at + sizeof(uintptr_t) <= bytes; at += sizeof(uintptr_t)) {
    uintptr_t word;
    std::memcpy(&word, static_cast<const unsigned char*>(arguments) + at, sizeof(word));
    if (is_of_another_device(word)) return cudaErrorIllegalAddress;
  }
  if (!captured || (stream && stream != captured_stream)) return cudaSuccess;
  if (!stream) {
    capture_is_broken = true;
    return cudaErrorStreamCaptureImplicit;
  }
  if (capture_is_kept) captured->push_back(std::move(work));
  work = nullptr;
  return cudaSuccess;
}

}  // namespace

cudaError_t get_device(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t set_device(int device) {
  if (device < 0 || device >= kDevices) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}

cudaError_t allocate(void** data, size_t bytes) {
  if (const cudaError_t error = refuse_while_capturing()) return error;
  *data = ::operator new(bytes);
  return cudaSuccess;
}

cudaError_t release(void* data) {
  if (const cudaError_t error = refuse_while_capturing()) return error;
  ::operator delete(data);
  return cudaSuccess;
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (const cudaError_t error = refuse_while_capturing()) return error;
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t synchronize() {
  return refuse_while_capturing();
}

cudaError_t synchronize_stream(cudaStream_t) {
  return refuse_while_capturing();
}

cudaError_t submit(cudaStream_t stream, Work work, const void* arguments, size_t bytes) {
  const Turn turn;
  const cudaError_t error = check_and_keep(reinterpret_cast<Stream*>(stream), work, arguments, bytes);
  return error == cudaSuccess && work ? work() : error;
}

}  // namespace cuda_on_cpu

// For the tests, by ctypes: see streams.py.
using namespace cuda_on_cpu;

extern "C" void cuda_on_cpu_place(uintptr_t address, size_t bytes, int device) {
  const std::lock_guard<UnseenMutex> lock(mutex);
  placed[address] = {address + bytes, device};
}

extern "C" void cuda_on_cpu_forget_places() {
  const std::lock_guard<UnseenMutex> lock(mutex);
  placed.clear();
}

extern "C" int cuda_on_cpu_current_device() {
  return current_device;
}

extern "C" void* cuda_on_cpu_create_stream(int device) {
  return new Stream{device};
}

extern "C" void cuda_on_cpu_destroy_stream(void* stream) {
  delete static_cast<Stream*>(stream);
}

// Without `keep` the launches are forgotten: to measure what the host does for them.
extern "C" void cuda_on_cpu_begin_capture(void* stream, bool keep) {
  const std::lock_guard<UnseenMutex> lock(mutex);
  captured_stream = static_cast<Stream*>(stream);
  captured = std::make_unique<Graph>();
  capture_is_broken = false, capture_is_kept = keep;
}

// The graph, null where something was refused.
extern "C" void* cuda_on_cpu_end_capture() {
  const std::lock_guard<UnseenMutex> lock(mutex);
  std::unique_ptr<Graph> graph = std::move(captured);
  return capture_is_broken ? nullptr : graph.release();
}

extern "C" int cuda_on_cpu_launches(void* graph) {
  return int(static_cast<Graph*>(graph)->size());
}

extern "C" int cuda_on_cpu_replay(void* graph) {
  for (const Work& work : *static_cast<Graph*>(graph)) {
    if (const cudaError_t error = work()) return error;
  }
  return cudaSuccess;
}

extern "C" void cuda_on_cpu_destroy_graph(void* graph) {
  delete static_cast<Graph*>(graph);
}

extern "C" void cuda_on_cpu_take_turns(bool begin) {
  const std::lock_guard<UnseenMutex> lock(mutex);
  turn_takers += int(begin) - int(takes_turns);
  takes_turns = begin;
}
