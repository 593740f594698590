// Runs a grid: one block after the other, the threads of each in random order from barrier to barrier. The seed is
// CUDA_ON_CPU_SEED; it also chooses the poison of shared memory, so that results that depend on either differ by seed.
#include "scheduler.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iterator>
#include <memory>
#include <mutex>
#include <random>
#include <string>

namespace cuda_on_cpu {

Lane* self;
uint3 block_index;
dim3 block_size, grid_size;
Work cuda_on_cpu_work;

namespace {

// What every architecture the kernels are built for can give to a block (sm_86, sm_89, sm_120: 99 KiB).
constexpr size_t kSharedLimitBytes = 99 << 10;

class LaunchFailed : public std::exception {};

UnseenMutex one_grid;
thread_local std::string failure;
// The threads of all blocks. To TSan a thread is dear (0.5 ms, 0.8 MB), so blocks take turns in a number of them.
// Between two blocks that had the same, one after the other, TSan finds no race, nor between the later one and what the
// earlier one met in an atomic. CUDA_ON_CPU_RENEW gives each block of a grid threads of its own.
#ifdef CUDA_ON_CPU_TSAN
constexpr size_t kTsanThreads = 768;
#else
constexpr size_t kTsanThreads = 0;
#endif
void (*kernel_body)(void*);
void* kernel_arguments;

struct alignas(8) Place {
  char unused[8];
};
// Of every block: two for its barrier, two for each of 32 warps. One would do for a barrier that nobody passes before
// all have left it: here a thread may reach the next before another goes on from this one, which must not seem to know
// of it.
constexpr size_t kMeetings = 33, kPlaces = 2 * kMeetings;
size_t first_place;
size_t generations[kMeetings];  // how often they met

// Of a host thread's own, so that to TSan nothing orders the grids of two: only one runs at a time.
struct Host {
  std::vector<std::unique_ptr<Thread>> pool;
  std::vector<Place> places;
  Place grid_begin, grid_end;
};
Host* host;  // of the grid that runs

Host* this_host() {
  thread_local const std::unique_ptr<Host> own = std::make_unique<Host>();
  return own.get();
}

void run_thread() {
  Thread* thread = current();
  thread->fiber.arrived();
  happens_after(&host->grid_begin);
  kernel_body(kernel_arguments);
  if (thread->copy_count) fail("a thread ended with cp.async copies that nothing waited for");
  happens_before(&host->grid_end);
  thread->state = State::ended;
  thread->fiber.suspend(true);
  __builtin_trap();
}

void resume(Thread* thread) {
  self = thread;
  thread->fiber.resume();
  self = nullptr;
  if (thread->state == State::failed) throw LaunchFailed();
}

// The lanes that wait at the same collective with the same mask as `first`; all null while one is missing.
bool gather_warp(Thread* const* warp, size_t size, const Thread* first, Lane* (&lanes)[32]) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    lanes[lane] = nullptr;
    if (!(first->mask >> lane & 1)) continue;
    if (lane >= size || warp[lane]->state == State::ended) {
      fail("%s:%d: %s: mask %08x names lane %u, which %s", first->file, first->line, first->collective, first->mask,
           lane, lane >= size ? "this block does not have" : "has ended");
    }
    const Thread* other = warp[lane];
    if (other->state != State::at_warp_collective || other->mask != first->mask ||
        std::strcmp(other->collective, first->collective)) {
      return false;
    }
    lanes[lane] = warp[lane];
  }
  return true;
}

bool release_warp(Thread* const* warp, size_t size) {
  bool any = false;
  for (size_t i = 0; i < size; ++i) {
    Lane* lanes[32];
    if (warp[i]->state != State::at_warp_collective || !gather_warp(warp, size, warp[i], lanes)) continue;
    warp[i]->combine(lanes, warp[i]->mask);
    ++generations[1 + warp[i]->warp];
    for (Lane* lane : lanes) {
      if (lane) static_cast<Thread*>(lane)->state = State::ready;
    }
    any = true;
  }
  return any;
}

void release_barrier(const std::vector<Thread*>& threads) {
  const auto waiting = [](const Thread* t) { return t->state == State::at_block_barrier; };
  const Thread* first = *std::find_if(threads.begin(), threads.end(), waiting);
  for (Thread* thread : threads) {
    if (thread->state == State::ended) {
      fail("%s:%d: __syncthreads() reached by %d of %zu threads, the others have ended", first->file, first->line,
           int(std::count_if(threads.begin(), threads.end(), waiting)), threads.size());
    }
    if (thread->barrier_site != first->barrier_site || std::strcmp(thread->file, first->file)) {
      fail("divergent __syncthreads(): thread %u waits at %s:%d, thread %u at %s:%d", first->index.x, first->file,
           first->line, thread->index.x, thread->file, thread->line);
    }
  }
  for (Thread* thread : threads) thread->state = State::ready;
  ++generations[0];
}

[[noreturn]] void report_deadlock(const std::vector<Thread*>& threads) {
  std::string who;
  for (const Thread* t : threads) {
    if (t->state == State::ended || who.size() > 400) continue;
    char line[200];
    std::snprintf(line, sizeof(line), "; thread %u waits at %s %s:%d, mask %08x", t->index.x,
                  t->state == State::at_block_barrier ? "__syncthreads" : t->collective, t->file, t->line, t->mask);
    who += line;
  }
  fail("threads wait for each other for ever%s", who.c_str());
}

void run_block(std::mt19937_64& random, const std::vector<Thread*>& threads) {
  std::vector<Thread*> order = threads;
  for (;;) {
    std::shuffle(order.begin(), order.end(), random);
    bool ran = false, freed = false;
    for (Thread* thread : order) {
      if (thread->state != State::ready) continue;
      resume(thread);
      ran = true;
    }
    for (size_t first = 0; first < threads.size(); first += 32) {
      freed |= release_warp(threads.data() + first, std::min<size_t>(32, threads.size() - first));
    }
    if (freed) continue;
    size_t ended = 0, at_barrier = 0;
    for (const Thread* thread : threads) {
      ended += thread->state == State::ended;
      at_barrier += thread->state == State::at_block_barrier;
    }
    if (ended == threads.size()) return;
    if (ended + at_barrier == threads.size()) {
      release_barrier(threads);
    } else if (!ran) {
      report_deadlock(threads);
    }
  }
}

void prepare(Thread* thread, unsigned i, bool renew) {
  thread->index = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
  thread->lane = i % 32, thread->warp = i / 32;
  thread->state = State::ready;
  thread->mask = 0, thread->collective = "nothing", thread->file = "", thread->line = 0;
  thread->copy_count = thread->group_count = thread->atomic_count = 0;
  thread->has_fenced = false;
  thread->fiber.prepare(&run_thread, renew);
}

void check_launch(dim3 grid, dim3 block, size_t dynamic_shared_bytes) {
  const size_t threads = size_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) {
    fail("expected a block of 1 to 1024 threads, got %u x %u x %u", block.x, block.y, block.z);
  }
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    fail("expected a grid of 1 to 2147483647 x 65535 x 65535 blocks, got %u x %u x %u", grid.x, grid.y, grid.z);
  }
  if (dynamic_shared_bytes > kSharedLimitBytes) {
    fail("expected at most %zu bytes of shared memory, got %zu", kSharedLimitBytes, dynamic_shared_bytes);
  }
}

void run_blocks(size_t shared_bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<size_t> blocks(size_t(grid_size.x) * grid_size.y * grid_size.z);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), random);
  host->places.assign(blocks.size() * kPlaces, Place{});
  const size_t count = size_t(block_size.x) * block_size.y * block_size.z;
  std::vector<Thread*> threads(count);
  // 0xff is NaN in every type; 0x7f the largest finite number in some: a result that depends on it depends on the seed.
  const unsigned char poison = seed % 2 ? 0x7f : 0xff;
  const size_t capacity = std::max(count, kTsanThreads);
  size_t next = 0;
  bool renew = false;
  for (const size_t block : blocks) {
    first_place = block * kPlaces;
    std::fill(std::begin(generations), std::end(generations), 0);
    block_index = {unsigned(block % grid_size.x), unsigned(block / grid_size.x % grid_size.y),
                   unsigned(block / grid_size.x / grid_size.y)};
    begin_shared(shared_bytes, kSharedLimitBytes, poison);
    if (next + count > capacity) next = 0, renew = std::getenv("CUDA_ON_CPU_RENEW");
    while (host->pool.size() < next + count) host->pool.push_back(std::make_unique<Thread>());
    for (size_t i = 0; i < count; ++i) {
      threads[i] = host->pool[next++].get();
      prepare(threads[i], unsigned(i), renew);
    }
    run_block(random, threads);
    end_shared();
  }
}

}  // namespace

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  failure = text;
  if (!self) throw LaunchFailed();
  char place[128];
  std::snprintf(place, sizeof(place), " (block %u, %u, %u, thread %u, %u, %u)", block_index.x, block_index.y,
                block_index.z, self->index.x, self->index.y, self->index.z);
  failure += place;
  wait_in(State::failed);
  __builtin_trap();
}

const char* error_text(cudaError_t error) {
  switch (error) {
    case cudaErrorLaunchFailure: return failure.c_str();
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "the stream is of a device that is not the current one";
    case cudaErrorIllegalAddress: return "an argument points to memory of a device that is not the current one";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureImplicit: return "a launch to the legacy stream while another is capturing";
    default: return "invalid argument";
  }
}

void wait_in(State state) {
  Thread* thread = current();
  thread->state = state;
  thread->fiber.suspend(state == State::failed);
}

void* block_place() {
  return &host->places[first_place + generations[0] % 2];
}

void* warp_place(unsigned warp) {
  return &host->places[first_place + 2 * (1 + warp) + generations[1 + warp] % 2];
}

cudaError_t run_grid(dim3 grid, dim3 block, size_t dynamic_shared_bytes, void (*body)(void*), void* arguments) {
  const std::lock_guard<UnseenMutex> lock(one_grid);
  host = this_host();
  kernel_body = body, kernel_arguments = arguments;
  block_size = block, grid_size = grid;
  const char* seed = std::getenv("CUDA_ON_CPU_SEED");
  cudaError_t error = cudaSuccess;
  happens_before(&host->grid_begin);
  try {
    check_launch(grid, block, dynamic_shared_bytes);
    run_blocks(dynamic_shared_bytes, seed ? std::strtoull(seed, nullptr, 10) : 0);
  } catch (const LaunchFailed&) {
    error = cudaErrorLaunchFailure;
    for (auto& thread : host->pool) thread->fiber.release();
    end_shared();
  }
  happens_after(&host->grid_end);
  end_grid_shared();  // frees what the threads wrote to
  return error;
}

void block_barrier(const char* file, int line, int site) {
  Thread* thread = current();
  thread->file = file, thread->line = line, thread->barrier_site = site;
  void* const place = block_place();
  happens_before(place);
  wait_in(State::at_block_barrier);
  happens_after(place);
}

}  // namespace cuda_on_cpu
