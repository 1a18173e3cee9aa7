#include "client/mesh/node/scanner.h"

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <new>

namespace kvm::mesh {

Awaitable<Status> Scanner::Once() {
  ScanPlan plan;
  plan.held = node_.events != nullptr;
  bool again = false;
  if (node_.disk && node_.disk->cache().recovered()) {
    plan.stored = [disk = node_.disk.get()](const BlockKey& key) { return disk->cache().table().Contains(key); };
    plan.most = node_.disk->room();
    // What was left out for lack of room, or before the disk cache had been opened
    again = node_.disk->wants_more() || !asked_for_blocks_;
    asked_for_blocks_ = true;
  }
  again = again || (node_.events && node_.events->WantsAgain());
  std::function<Result<ScanResult>()> scan = [&] {
    if (again) scan_.ReadAgain();
    return scan_.Run(plan);
  };
  Result<ScanResult> found = co_await node_.control_threads.Run("scan of the registry", scan);
  if (!found) co_return found.error();
  node_.models.merge(found->new_models);
  if (found->keys) {
    node_.shapes = std::move(found->shapes);
    node_.summary.Update(std::move(*found->keys));
    if (plan.stored) node_.disk->Offer(std::move(found->unstored), found->more_unstored);
    if (node_.events) node_.events->Use(std::move(found->held));
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
