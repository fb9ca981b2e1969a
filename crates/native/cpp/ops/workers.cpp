#include "ops/workers.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>

#include "cblas.h"

namespace {

// A thread takes longer to wake than a small product takes, and the next one is never far while text
// is generated. So it looks out for work this long before it sleeps, and lets others run meanwhile.
constexpr std::chrono::milliseconds kSpin{2};

// How often it looks before it lets others run, which takes the system longer than most waits are.
constexpr int kLooks = 64;

// Tells the processor that this is a wait.
inline void pause() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One piece of work at a time, handed out in chunks from the last to the first.
class ThreadPool {
 public:
  ThreadPool() : threads_(scipy_openblas_get_num_threads()) {
    for (int i = 1; i < threads_; ++i) std::thread([this, i] { wait_for_work(i); }).detach();
  }

  int threads() const { return threads_; }

  void share(int chunks, void (*work)(const void*, int, int), const void* context) {
    // Work that is part of a chunk is not shared again; its thread may hold the lock already.
    static thread_local bool shares = false;
    std::unique_lock<std::mutex> alone(in_use_, std::defer_lock);
    if (chunks <= 1 || threads_ == 1 || shares || !alone.try_lock()) {
      for (int chunk = 0; chunk < chunks; ++chunk) work(context, chunk, 0);
      return;
    }
    shares = true;
    work_ = work;
    context_ = context;
    undone_.store(chunks, std::memory_order_relaxed);
    const std::uint32_t turn = turn_.load(std::memory_order_relaxed) + 1;
    left_.store(std::uint64_t{turn} << 32 | static_cast<std::uint32_t>(chunks),
                std::memory_order_release);
    turn_.store(turn, std::memory_order_release);
    turn_.notify_all();
    take_chunks(turn, 0);
    shares = false;
    for (int looks = 1; undone_.load(std::memory_order_acquire) != 0; ++looks) {
      if (looks % kLooks == 0) std::this_thread::yield();
      else pause();
    }
  }

 private:
  // A chunk is taken only while the turn is the one that the thread woke for. What belongs to the
  // turn stays as it is until the chunk is done, since the caller waits for that.
  void take_chunks(std::uint32_t turn, int worker) {
    std::uint64_t left = left_.load(std::memory_order_acquire);
    while (left >> 32 == turn && static_cast<std::uint32_t>(left) != 0) {
      if (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel)) continue;
      work_(context_, static_cast<int>(static_cast<std::uint32_t>(left)) - 1, worker);
      undone_.fetch_sub(1, std::memory_order_release);
      left = left_.load(std::memory_order_acquire);
    }
  }

  void wait_for_work(int worker) {
    std::uint32_t seen = 0;
    for (;;) {
      const auto since = std::chrono::steady_clock::now();
      for (int looks = 1; turn_.load(std::memory_order_acquire) == seen; ++looks) {
        pause();
        if (looks % kLooks != 0) continue;
        if (std::chrono::steady_clock::now() - since >= kSpin) break;
        std::this_thread::yield();
      }
      turn_.wait(seen, std::memory_order_acquire);
      seen = turn_.load(std::memory_order_acquire);
      take_chunks(seen, worker);
    }
  }

  const int threads_;
  std::mutex in_use_;
  void (*work_)(const void*, int, int) = nullptr;
  const void* context_ = nullptr;
  // The turn's number above, the chunks not yet taken below.
  std::atomic<std::uint64_t> left_{0};
  std::atomic<int> undone_{0};
  std::atomic<std::uint32_t> turn_{0};
};

// Never taken down: its threads look at it until the process is gone.
ThreadPool& pool() {
  static ThreadPool* const pool = new ThreadPool;
  return *pool;
}

}  // namespace

namespace workers {

int count() { return pool().threads(); }

void share(int chunks, void (*work)(const void* context, int chunk, int worker),
           const void* context) {
  pool().share(chunks, work, context);
}

}  // namespace workers
