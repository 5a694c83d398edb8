// Parallel loop over the pieces of work of a call, on threads of its own.
//
// Threads are started for the call and joined before it returns: no pool, so nothing to survive a fork, to
// share between callers or to shut down; starting one costs some 20 µs, a piece of work milliseconds. The
// calling thread works too, and asks between pieces whether to stop.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "memory.h"
#include "satclip.h"

namespace satclip {

using Clock = std::chrono::steady_clock;
// A question to the caller takes Python's lock, which other threads may hold; an answer later than this is
// felt at Ctrl-C.
constexpr auto kPollInterval = std::chrono::milliseconds(50);

// True while a call is to go on; asked between pieces of work. Only the calling thread asks the caller, and
// not too often.
class KeepRunning {
  public:
    KeepRunning(std::atomic<bool>& stop, const Control* control)
        : stop_(stop), control_(control), asked_(Clock::now()) {}
    bool operator()() {
        // Once stopped it must not ask again: what stopped it is an exception that waits to be raised.
        if (stop_.load(std::memory_order_relaxed)) return false;
        if (control_ && control_->interrupted && Clock::now() - asked_ >= kPollInterval) {
            if (control_->interrupted(control_->context)) stop_ = true;
            asked_ = Clock::now();
        }
        return !stop_.load(std::memory_order_relaxed);
    }

  private:
    std::atomic<bool>& stop_;
    const Control* control_;
    Clock::time_point asked_;
};

// Calls body(item, scratch, keep_running) for each item of 0..items−1; false when interrupted. An exception
// of a body is rethrown once all threads have ended.
template <class Body>
bool run_parallel(size_t items, size_t scratch, const Control& control, Body&& body) {
    const size_t workers = std::max<size_t>(1, std::min<size_t>(std::max(1, control.threads), items));
    const size_t worker_scratch = (scratch + 31) / 16 * 16;
    // Before any thread starts, so that failure is the caller's.
    const auto memory = aligned_floats(worker_scratch * workers);
    std::atomic<size_t> next{0};
    std::atomic<bool> stop{false};
    std::mutex mutex;
    std::exception_ptr failure;  // the first of any thread, the caller's to have when all threads are joined
    auto work = [&](size_t worker, KeepRunning& keep_running) {
        try {
            for (size_t item; keep_running() && (item = next.fetch_add(1)) < items;)
                body(item, memory.get() + worker_scratch * worker, keep_running);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            if (!failure) failure = std::current_exception();
            stop = true;
        }
    };

    std::condition_variable ended;
    size_t running = 0;
    std::vector<std::thread> threads;
    threads.reserve(workers);
    try {
        while (threads.size() + 1 < workers) {
            {
                const std::lock_guard<std::mutex> lock(mutex);
                ++running;
            }
            threads.emplace_back([&, worker = threads.size() + 1] {
                KeepRunning keep_running(stop, nullptr);
                work(worker, keep_running);
                const std::lock_guard<std::mutex> lock(mutex);
                --running;
                ended.notify_one();
            });
        }
    } catch (...) {
        // No more threads (system_error) or memory for them (bad_alloc): the ones there are do all the work.
        const std::lock_guard<std::mutex> lock(mutex);
        --running;
    }
    KeepRunning keep_running(stop, &control);
    work(0, keep_running);
    {
        std::unique_lock<std::mutex> lock(mutex);
        while (running) {
            ended.wait_for(lock, kPollInterval);
            lock.unlock();
            keep_running();
            lock.lock();
        }
    }
    for (std::thread& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
    return !stop;
}

}  // namespace satclip
