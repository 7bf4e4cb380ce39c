// A fork-join thread pool. The caller runs tasks too and never waits for a worker that hasn't started, so a busy
// machine slows a call down but doesn't stall it (as OpenMP's barriers do).
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
  // The shared pool, with MUSICGEN_MLX_THREADS threads including the caller's; by default one per core.
  static Pool& get() {
    static Pool* pool = new Pool(default_thread_count());  // never destroyed: the process may exit at any time
    return *pool;
  }

  explicit Pool(int threads) {
    for (int i = 1; i < threads; i++) threads_.emplace_back([this] { worker_loop(); });
  }
  ~Pool() {
    stop_.store(true);
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  int size() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls task(i) for i in [0, count), in any order, in parallel; returns when all are done.
  template <class Task>
  void run(int count, const Task& task) {
    std::unique_lock<std::mutex> lock(callers_, std::try_to_lock);
    if (threads_.empty() || count < 2 || !lock.owns_lock()) {  // pool in use: run serially
      for (int i = 0; i < count; i++) task(i);
      return;
    }
    Job job{[](const void* p, int i) { (*static_cast<const Task*>(p))(i); }, &task, count};
    job_.store(&job, std::memory_order_release);
    const uint32_t generation = generation_.fetch_add(1, std::memory_order_acq_rel) + 1;
    if (sleeping_workers_.load() > 0) generation_.notify_all();
    job.run_tasks();
    // From here on no worker can start on this job; wait for those that have.
    job_.store(nullptr, std::memory_order_seq_cst);
    for (int spins = 0; active_workers_.load(std::memory_order_seq_cst) != 0; spins++)
      if (spins > 4000) std::this_thread::yield();
    (void)generation;
  }

 private:
  struct Job {
    void (*call)(const void*, int);
    const void* task;
    int count;
    std::atomic<int> next{0};
    void run_tasks() {
      for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) call(task, i);
    }
  };

  static int default_thread_count() {
    if (const char* value = std::getenv("MUSICGEN_MLX_THREADS"))
      if (const int n = std::atoi(value); n > 0) return n < 256 ? n : 256;
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    return cores > 0 ? cores : 1;
  }

  void worker_loop() {
    uint32_t last_generation = 0;
    while (!stop_.load()) {
      uint32_t now = generation_.load();
      // Calls within a step follow each other within microseconds: spin for a while, then sleep.
      for (int spins = 0; now == last_generation && spins < 2000; spins++) {
        pause();
        now = generation_.load(std::memory_order_acquire);
      }
      if (now == last_generation) {
        sleeping_workers_.fetch_add(1);
        generation_.wait(last_generation);
        sleeping_workers_.fetch_sub(1);
        continue;
      }
      last_generation = now;
      // Register as active before reading the job, so that run() can't return while it is in use.
      active_workers_.fetch_add(1, std::memory_order_seq_cst);
      if (Job* job = job_.load(std::memory_order_seq_cst)) job->run_tasks();
      active_workers_.fetch_sub(1, std::memory_order_seq_cst);
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
  std::atomic<int> active_workers_{0}, sleeping_workers_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace musicgen
