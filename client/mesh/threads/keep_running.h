// KeepRunning: coroutines that are not to end before the process does. An exception, which is a
// lack of memory if it is anything, ends one run of such a coroutine and never the process; it is
// started again after a pause.
//
// An exception inside the coroutine is told to what has started it. One that is thrown outside,
// while Asio passes a result on, comes out of io_context::run instead and destroys the coroutine
// without a word. So RunAll looks, after each exception, at which ones still exist.
#pragma once

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
  // `work` starts the coroutine; what it refers to must live as long as `io` runs. A coroutine that
  // ends by itself is not started again.
  static void Start(boost::asio::io_context& io, std::function<Awaitable<void>()> work);
  // Runs `io` until it is stopped. What exceptions say is written to stderr.
  static void RunAll(boost::asio::io_context& io);

 private:
  class Kept;

  KeepRunning(boost::asio::io_context& io, std::function<Awaitable<void>()> work) : io_(io), pause_(io), work_(std::move(work)) {}
  static void RestartLost(boost::asio::io_context& io);

  void Run();
  void RunLater();

  boost::asio::io_context& io_;
  boost::asio::steady_timer pause_;
  std::function<Awaitable<void>()> work_;
  std::weak_ptr<void> run_;  // a run of the coroutine, or the pause before it
};

// For a coroutine that may fail alone: its end, however it comes, is no matter of others.
inline constexpr auto kAlone = [](const std::exception_ptr&) {};

}  // namespace kvm::mesh
