// StallGuard: closes a channel whose operation is too late, or makes no progress.
//
// Begin before an operation, Progress while it runs, End in its completion. The timer calls `close`
// at most once for each operation, and never for one that has ended. Of the io_context's thread.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <functional>
#include <memory>

#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

class StallGuard : public std::enable_shared_from_this<StallGuard> {
 public:
  // `close`: must make the operation under way complete. It is called in a turn of its own.
  StallGuard(const boost::asio::any_io_executor& executor, std::function<void()> close) : timer_(executor), close_(std::move(close)) {}

  void Begin(Limits limits);
  // `moved`: bytes of the operation so far.
  void Progress(std::size_t moved) noexcept;
  void End() noexcept;
  // Why an operation that failed was ended by this guard; null: it was not.
  const char* cause() const noexcept { return cause_; }
  // No operation follows; `close` is not called any more.
  void Stop() noexcept;

 private:
  void Wait();
  Time Next() const noexcept;

  boost::asio::steady_timer timer_;
  std::function<void()> close_;
  Limits limits_{Time()};
  Time progressed_at_{};
  std::size_t counted_ = 0;  // bytes as of progressed_at_
  // Number of the operation that the timer belongs to. A timer that fired just before its operation
  // ended must not close the channel under the next one.
  std::uint64_t operation_ = 0;
  const char* cause_ = nullptr;
};

}  // namespace kvm::mesh
