// Threads that share numbered pieces of work.
//
// Why not OpenMP: at the end of its region the caller waits until every thread of the team has come and gone, also one
// that the operating system has not let run yet. On a busy machine that is milliseconds for each of a step's hundreds
// of regions. Here the caller takes pieces itself until none is left, and waits only for pieces that another thread has
// begun: a thread that wakes up too late finds nothing to do and holds nobody up.
//
// Which thread does a piece is left to chance, so a piece must write to places of its own, and its result may depend on
// its number alone. Then results are equal to the last bit at any number of threads.
#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

namespace tandem {

class Pool {
  public:
    // The pool of this process.
    static Pool& instance() {
        static std::once_flag once;
        std::call_once(once, [] {
            current().store(new Pool);
            // A forked child (a loader's worker) has none of the threads, and may have inherited a taken lock: it
            // begins anew. The old pool is not destroyed, as its threads do not exist to be joined.
            pthread_atfork(nullptr, nullptr, [] { current().store(new Pool); });
        });
        return *current().load();
    }

    // Call piece(i) for each i in [0, count), on up to `threads` threads with the caller's; returns when all are done.
    template <typename Piece>
    void run(int64_t count, int threads, const Piece& piece) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        // A second caller at the same time works alone.
        if (threads <= 1 || count <= 1 || !turn.owns_lock()) {
            for (int64_t i = 0; i < count; ++i) piece(i);
            return;
        }
        Job job;
        job.count = count;
        job.context = &piece;
        job.call = [](const void* context, int64_t i) { (*static_cast<const Piece*>(context))(i); };
        const int helpers = static_cast<int>(threads - 1 < count - 1 ? threads - 1 : count - 1);
        {
            std::lock_guard<std::mutex> guard(mutex_);
            while (started_ < helpers) start_thread();
            job.wanted = helpers;
            job_ = &job;
        }
        if (helpers == 1) wake_.notify_one();
        else wake_.notify_all();
        work(job);
        std::unique_lock<std::mutex> guard(mutex_);
        job_ = nullptr;  // no thread enters from here on
        left_.wait(guard, [&] { return job.inside == 0; });
    }

  private:
    struct Job {
        std::atomic<int64_t> next{0};
        int64_t count = 0;
        const void* context = nullptr;
        void (*call)(const void*, int64_t) = nullptr;
        int wanted = 0;  // threads that may still enter
        int inside = 0;  // threads that have entered and not left; both under mutex_
    };

    static std::atomic<Pool*>& current() {
        static std::atomic<Pool*> pool{nullptr};
        return pool;
    }

    static void work(Job& job) {
        for (int64_t i = job.next.fetch_add(1); i < job.count; i = job.next.fetch_add(1)) job.call(job.context, i);
    }

    void start_thread() {
        ++started_;
        // Detached: it waits for work until the process ends.
        std::thread([this] {
            std::unique_lock<std::mutex> guard(mutex_);
            for (;;) {
                wake_.wait(guard, [this] { return job_ != nullptr && job_->wanted > 0; });
                Job& job = *job_;
                --job.wanted;
                ++job.inside;
                guard.unlock();
                work(job);
                guard.lock();
                if (--job.inside == 0) left_.notify_one();
            }
        }).detach();
    }

    std::mutex turn_;
    std::mutex mutex_;
    std::condition_variable wake_, left_;
    Job* job_ = nullptr;
    int started_ = 0;
};

// Memory of this thread, aligned for vectors, valid until its next call with the same Tag. Uninitialised.
template <typename Tag, typename Number>
Number* scratch(size_t count) {
    struct Kept {
        void* memory = nullptr;
        size_t bytes = 0;
        ~Kept() { std::free(memory); }
    };
    thread_local Kept kept;
    const size_t bytes = (count * sizeof(Number) + 63) / 64 * 64;
    if (kept.bytes < bytes) {
        std::free(kept.memory);
        kept.bytes = 0;
        kept.memory = std::aligned_alloc(64, bytes);
        if (kept.memory == nullptr) throw std::bad_alloc();
        kept.bytes = bytes;
    }
    return static_cast<Number*>(kept.memory);
}

}  // namespace tandem
