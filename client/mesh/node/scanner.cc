#include "client/mesh/node/scanner.h"

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <new>

#include "client/mesh/threads/on_thread.h"

namespace kvm::mesh {

Awaitable<Status> Scanner::Once() {
  std::function<Result<ScanResult>()> scan = [this] { return scan_.Run(); };
  Result<ScanResult> found = co_await OnThread(node_.control_threads, scan);
  if (!found) co_return found.error();
  node_.models.merge(found->new_models);
  if (found->keys) {
    node_.shapes = std::move(found->shapes);
    node_.summary.Update(std::move(*found->keys));
  }
  co_return Status();
}

Awaitable<void> Scanner::Run() {
  boost::asio::steady_timer pause(node_.io);
  for (;;) {
    // Without kvmd, or without memory, there is nothing new, and the next scan tries again.
    Status scanned;
    try {
      scanned = co_await Once();
    } catch (const std::bad_alloc&) {
      scanned = MakeError(Errc::kResourceExhausted, "no memory for a scan");
      scan_.ReadAgain();
    }
    pause.expires_after(std::chrono::milliseconds(node_.config.pull_interval_ms));
    boost::system::error_code ignored;
    co_await pause.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
  }
}

}  // namespace kvm::mesh
