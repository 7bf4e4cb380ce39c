// Fork and join on our own threads. A caller never waits for a thread that has not begun: it takes the pieces
// itself, so that a busy machine slows a call down but doesn't stall it (as OpenMP's barriers do).
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

namespace musicgen {

class Pool {
 public:
  // Threads that work at once, the caller's included: MUSICGEN_MLX_THREADS, else one for each core.
  static Pool& get() {
    static Pool* pool = new Pool(wanted_threads());  // never ended: a process may exit at any moment
    return *pool;
  }

  explicit Pool(int threads) {
    for (int i = 1; i < threads; i++) threads_.emplace_back([this] { work(); });
  }
  ~Pool() {
    stop_.store(true);
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  int size() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls piece(i) for i = 0 … count - 1, in any order, some at once; returns when all are done.
  template <class Piece>
  void run(int count, const Piece& piece) {
    std::unique_lock<std::mutex> lock(callers_, std::try_to_lock);
    if (threads_.empty() || count < 2 || !lock.owns_lock()) {  // another call has the threads: alone, then
      for (int i = 0; i < count; i++) piece(i);
      return;
    }
    Job job{[](const void* p, int i) { (*static_cast<const Piece*>(p))(i); }, &piece, count};
    job_.store(&job, std::memory_order_release);
    const uint32_t generation = generation_.fetch_add(1, std::memory_order_acq_rel) + 1;
    if (sleeping_.load() > 0) generation_.notify_all();
    job.take();
    // No thread may begin on this job any more; those that have are waited for.
    job_.store(nullptr, std::memory_order_seq_cst);
    for (int spins = 0; inside_.load(std::memory_order_seq_cst) != 0; spins++)
      if (spins > 4000) std::this_thread::yield();
    (void)generation;
  }

 private:
  struct Job {
    void (*call)(const void*, int);
    const void* piece;
    int count;
    std::atomic<int> next{0};
    void take() {
      for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) call(piece, i);
    }
  };

  static int wanted_threads() {
    if (const char* text = std::getenv("MUSICGEN_MLX_THREADS"))
      if (const int n = std::atoi(text); n > 0) return n < 256 ? n : 256;
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    return cores > 0 ? cores : 1;
  }

  void work() {
    uint32_t seen = 0;
    while (!stop_.load()) {
      uint32_t now = generation_.load();
      // A step's calls follow each other within microseconds: wait a little awake, then sleep.
      for (int spins = 0; now == seen && spins < 2000; spins++) {
        pause();
        now = generation_.load(std::memory_order_acquire);
      }
      if (now == seen) {
        sleeping_.fetch_add(1);
        generation_.wait(seen);
        sleeping_.fetch_sub(1);
        continue;
      }
      seen = now;
      // First say that someone is inside, then look whether the job is still there.
      inside_.fetch_add(1, std::memory_order_seq_cst);
      if (Job* job = job_.load(std::memory_order_seq_cst)) job->take();
      inside_.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::vector<std::thread> threads_;
  std::mutex callers_;
  std::atomic<Job*> job_{nullptr};
  std::atomic<uint32_t> generation_{0};
  std::atomic<int> inside_{0}, sleeping_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace musicgen
