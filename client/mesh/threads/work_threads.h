// WorkThreads: threads for functions that wait, or compute for long, while coroutines of the
// io_context go on.
//
// An exception ends the function that has thrown it, and never the process: it comes back to the
// io_context's thread, is counted there, and is an error to the caller. What has to be done on a
// thread after the function takes no memory. Called on the io_context's thread.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "client/mesh/threads/work_failures.h"
#include "client/mesh/transfer/transfer.h"
#include "kvm/error.h"

namespace kvm::mesh {

// What work that returns T comes to: T itself if it can be an error, else Result<T>.
template <class T>
struct WorkOutcomeOf {
  using Type = Result<T>;
};
template <class T>
struct WorkOutcomeOf<Result<T>> {
  using Type = Result<T>;
};
template <class T>
using WorkOutcome = WorkOutcomeOf<T>::Type;

class WorkThreads {
 public:
  // `io` and `failures` live until `join` has returned.
  WorkThreads(boost::asio::io_context& io, WorkFailures& failures, std::size_t threads) : io_(io), failures_(failures), pool_(threads) {}

  // Calls `work` on one of the threads, and then `done` on the io_context's, with what `work` has
  // thrown. Neither is called if this throws.
  void Start(std::function<void()> work, std::function<void(const std::exception_ptr&)> done);
  // Waits for all that was started. Nothing may be started afterwards.
  void join() { pool_.join(); }
  WorkFailures& failures() noexcept { return failures_; }

  // Work that was begun. Its destructor waits for the thread, if Ended has not: for a caller that
  // is destroyed, for lack of memory.
  template <class T>
  class Begun;

  // What `work` returns; an exception is kResourceExhausted, and has been counted. What `work`
  // refers to must live until this has ended, and so it may be the caller's own. `what`: for
  // people.
  template <class T>
  Awaitable<WorkOutcome<T>> Run(std::string_view what, std::function<T()> work) {
    Begun<T> begun(*this, what, std::move(work));
    co_return co_await begun.Ended();
  }

 private:
  template <class T>
  struct Call {
    Call(boost::asio::io_context& io, std::function<T()> function)
        : work(std::move(function)), ended(io, boost::asio::steady_timer::time_point::max()) {}

    void Do() {
      const Ending ending(ended_on_thread);
      value.emplace(work());
    }
    void Done(const std::exception_ptr& with) {
      failed = with;
      done = true;
      ended.cancel();
    }

    const std::function<T()> work;
    boost::asio::steady_timer ended;
    std::optional<T> value;
    std::exception_ptr failed;
    bool done = false;
    std::atomic<bool> ended_on_thread{false};
  };

  class Ending {
   public:
    explicit Ending(std::atomic<bool>& ended) noexcept : ended_(ended) {}
    ~Ending() {
      ended_.store(true, std::memory_order_release);
      ended_.notify_one();
    }
    Ending(const Ending&) = delete;
    Ending& operator=(const Ending&) = delete;

   private:
    std::atomic<bool>& ended_;
  };

  boost::asio::io_context& io_;
  WorkFailures& failures_;
  boost::asio::thread_pool pool_;
};

template <class T>
class WorkThreads::Begun {
 public:
  // As Run: what `work` refers to must live as long as this. `what` is a literal.
  Begun(WorkThreads& threads, std::string_view what, std::function<T()> work)
      : threads_(threads), what_(what), call_(std::make_shared<Call<T>>(threads.io_, std::move(work))) {
    threads_.Start([call = call_] { call->Do(); }, [call = call_](const std::exception_ptr& failed) { call->Done(failed); });
  }
  ~Begun() { call_->ended_on_thread.wait(false, std::memory_order_acquire); }
  Begun(const Begun&) = delete;
  Begun& operator=(const Begun&) = delete;

  // Once.
  Awaitable<WorkOutcome<T>> Ended() {
    boost::system::error_code ignored;
    while (!call_->done) co_await call_->ended.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
    if (call_->failed) co_return threads_.failures_.Note(what_, call_->failed);
    co_return std::move(*call_->value);
  }

 private:
  WorkThreads& threads_;
  const std::string_view what_;
  const std::shared_ptr<Call<T>> call_;
};

}  // namespace kvm::mesh
