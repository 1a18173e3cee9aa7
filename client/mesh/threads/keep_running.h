// KeepRunning: starts a coroutine that is not to end before the process does. An exception, which
// is a lack of memory if it is anything, ends one run of it and never the process; it is started
// again after a pause.
#pragma once

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>

#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

inline constexpr std::chrono::milliseconds kRestartPause{100};

class KeepRunning : public std::enable_shared_from_this<KeepRunning> {
 public:
  // `work` starts the coroutine; what it refers to must live as long as `io` runs.
  static void Start(boost::asio::io_context& io, std::function<Awaitable<void>()> work) {
    std::shared_ptr<KeepRunning>(new KeepRunning(io, std::move(work)))->Run();
  }

 private:
  KeepRunning(boost::asio::io_context& io, std::function<Awaitable<void>()> work) : io_(io), pause_(io), work_(std::move(work)) {}

  void Run() {
    try {
      boost::asio::co_spawn(io_, work_(), [self = shared_from_this()](const std::exception_ptr& failed) {
        if (failed) self->RunLater();
      });
    } catch (const std::exception&) {
      RunLater();
    }
  }
  void RunLater() {
    pause_.expires_after(kRestartPause);
    pause_.async_wait([self = shared_from_this()](boost::system::error_code) { self->Run(); });
  }

  boost::asio::io_context& io_;
  boost::asio::steady_timer pause_;
  std::function<Awaitable<void>()> work_;
};

// For a coroutine that may fail alone: its end, however it comes, is no matter of others.
inline constexpr auto kAlone = [](const std::exception_ptr&) {};

}  // namespace kvm::mesh
