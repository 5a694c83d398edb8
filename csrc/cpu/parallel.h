// Cutting a call into pieces of work and giving them to threads.
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
constexpr auto kPollEvery = std::chrono::milliseconds(50);

// Whether to go on: asked between pieces of work. Only the calling thread asks the caller, and not too often.
class Pulse {
  public:
    Pulse(std::atomic<bool>& stop, const Control* control)
        : stop_(stop), control_(control), asked_(Clock::now()) {}
    bool operator()() {
        // Once stopped it must not ask again: what stopped it is an exception that waits to be raised.
        if (stop_.load(std::memory_order_relaxed)) return false;
        if (control_ && control_->interrupted && Clock::now() - asked_ >= kPollEvery) {
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

// body(item, scratch, pulse) for each item of 0..items−1; false when interrupted. What a body throws is
// thrown here, once all threads have ended.
template <class Body>
bool run(size_t items, size_t scratch, const Control& control, Body&& body) {
    const size_t workers = std::max<size_t>(1, std::min<size_t>(std::max(1, control.threads), items));
    const size_t each = (scratch + 31) / 16 * 16;
    const auto memory =
        aligned_floats(each * workers);  // before any thread starts, so that failure is the caller's
    std::atomic<size_t> next{0};
    std::atomic<bool> stop{false};
    std::mutex mutex;
    std::exception_ptr failure;  // the first of any thread, the caller's to have when all threads are joined
    auto work = [&](size_t worker, Pulse& pulse) {
        try {
            for (size_t item; pulse() && (item = next.fetch_add(1)) < items;)
                body(item, memory.get() + each * worker, pulse);
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
                Pulse pulse(stop, nullptr);
                work(worker, pulse);
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
    Pulse pulse(stop, &control);
    work(0, pulse);
    {
        std::unique_lock<std::mutex> lock(mutex);
        while (running) {
            ended.wait_for(lock, kPollEvery);
            lock.unlock();
            pulse();
            lock.lock();
        }
    }
    for (std::thread& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
    return !stop;
}

}  // namespace satclip
