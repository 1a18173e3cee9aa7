#include "client/mesh/node/state/scanner.h"

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <new>
#include <utility>

#include "client/mesh/log/event_log.h"

namespace kvm::mesh {

ScanPlan Scanner::Plan() const {
  ScanPlan plan;
  plan.held = node_.events != nullptr;
  if (node_.disk && node_.disk->cache().recovered()) {
    plan.stored = [disk = node_.disk.get()](const BlockKey& key) { return disk->cache().table().Contains(key); };
    plan.most = node_.disk->room();
    // What was left out for lack of room, or before the disk cache had been opened
    plan.all_unstored = node_.disk->wants_more() || !asked_for_blocks_;
  }
  return plan;
}

void Scanner::Use(const ScanPlan& plan, ScanResult found) {
  node_.models.merge(found.new_models);
  if (!found.read) return;
  node_.shapes = std::move(found.shapes);
  if (found.all) {
    KeySet keys;
    keys.reserve(found.keys.size());
    for (const KeyChange& each : found.keys) keys.insert(each.key);
    node_.summary.Update(std::move(keys));
  } else {
    node_.summary.Change(found.keys);
  }
  if (plan.stored) {
    node_.disk->Offer(std::move(found.unstored), found.more_unstored, found.all || plan.all_unstored);
    asked_for_blocks_ = true;
  }
  if (node_.events) node_.events->Use(std::move(found.held));
}

Awaitable<Status> Scanner::Once() {
  const ScanPlan plan = Plan();
  if (node_.events && node_.events->WantsAgain()) scan_.ReadAgain();
  std::function<Result<ScanResult>()> scan = [&] { return scan_.Run(plan); };
  Result<ScanResult> found = co_await node_.control_threads.Run("scan of the registry", scan);
  if (!found) co_return found.error();
  try {
    Use(plan, std::move(*found));
  } catch (...) {
    scan_.ReadAgain();
    throw;
  }
  co_return Status();
}

void Scanner::LogKvmd(const Status& scanned) {
  if (!scanned && scanned.error().code == Errc::kResourceExhausted) return;  // of this process
  if (std::exchange(kvmd_, scanned ? Kvmd::kConnected : Kvmd::kLost) == kvmd_) return;
  if (scanned) {
    LogEvent(LogLevel::kInfo, "kvmd_connected", {{"domain", node_.client->domain()}});
  } else {
    LogEvent(LogLevel::kWarn, "kvmd_lost", {{"reason", scanned.error().ToString()}});
  }
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
    }
    LogKvmd(scanned);
    pause.expires_after(std::chrono::milliseconds(node_.config.pull_interval_ms));
    boost::system::error_code ignored;
    co_await pause.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
  }
}

}  // namespace kvm::mesh
