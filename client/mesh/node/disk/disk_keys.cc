#include "client/mesh/node/disk/disk_keys.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <span>

namespace kvm::mesh {
namespace {

constexpr std::size_t kAtOnce = 8192;  // changes between which other coroutines run

}  // namespace

Awaitable<void> DiskKeys::Once() {
  DiskCache& cache = node_.disk->cache();
  if (!cache.recovered()) co_return;
  std::function<DiskChanges()> take = [&cache, all = again_] { return cache.table().TakeChanges(all); };
  const Result<DiskChanges> changes = co_await node_.control_threads.Run("keys of the disk cache", take);
  if (!changes) co_return;
  again_ = true;  // should this end before all of it has been taken
  if (changes->all) node_.disk_summary.Clear();
  const std::span<const KeyChange> keys = changes->keys;
  for (std::size_t first = 0; first < keys.size(); first += kAtOnce) {
    node_.disk_summary.Change(keys.subspan(first, std::min(kAtOnce, keys.size() - first)));
    co_await boost::asio::post(node_.io, boost::asio::use_awaitable);
  }
  again_ = false;
}

Awaitable<void> DiskKeys::Run() {
  boost::asio::steady_timer pause(node_.io);
  for (;;) {
    co_await Once();
    pause.expires_after(std::chrono::milliseconds(node_.config.pull_interval_ms));
    boost::system::error_code ignored;
    co_await pause.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
  }
}

}  // namespace kvm::mesh
