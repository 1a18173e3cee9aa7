#include "client/mesh/node/disk/disk_feed.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace kvm::mesh {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kNothingToDo{50};
constexpr milliseconds kImportTimeout{2000};
// That are copied and written together. Peers' requests need staging memory as well.
constexpr std::uint64_t kFeedBytes = std::uint64_t{8} << 20;
constexpr std::size_t kFeedBlocks = 64;
constexpr std::size_t kStagingShare = 4;

}  // namespace

Awaitable<void> DiskFeed::Run() {
  while (!node_.disk->cache().recovered() && !node_.disk->cache().health().off()) co_await Recover();
  while (node_.disk->cache().recovered()) {
    const bool writes = node_.disk->readable(node_.client->domain()) && node_.disk->cache().health().may_write();
    if (writes && !node_.disk->waiting().empty()) {
      co_await WriteSome();
    } else {
      co_await Pause(kNothingToDo);
    }
  }
}

Awaitable<void> DiskFeed::Recover() {
  const std::string domain = node_.client->domain();
  if (domain.empty()) {
    co_await Pause(kNothingToDo);
    co_return;
  }
  std::function<Status()> recover = [this, domain] { return node_.disk->cache().Recover(domain); };
  static_cast<void>(co_await node_.disk->write_thread().Run("recovery of the disk cache", recover));
}

std::vector<CachedBlock> DiskFeed::TakeSome() {
  std::deque<CachedBlock>& waiting = node_.disk->waiting();
  std::vector<CachedBlock> out;
  const BlockShape shape = waiting.front().shape;
  const std::size_t most = std::clamp<std::size_t>(kFeedBytes / shape.block_bytes, 1, kFeedBlocks);
  while (!waiting.empty() && out.size() < most && waiting.front().shape == shape) {
    out.push_back(waiting.front());
    waiting.pop_front();
  }
  return out;
}

void DiskFeed::PutBack(std::span<const CachedBlock> blocks) {
  node_.disk->waiting().insert(node_.disk->waiting().begin(), blocks.begin(), blocks.end());
}

Awaitable<void> DiskFeed::WriteSome() {
  std::vector<CachedBlock> blocks = TakeSome();
  const BlockShape shape = blocks.front().shape;
  const auto model = node_.models.find(shape.fingerprint);
  if (model == node_.models.end() || shape.block_bytes > node_.config.max_block_bytes) co_return;
  Result<std::shared_ptr<SlotPool>> pool = co_await node_.staging.Get(model->second, shape);
  const std::size_t slots = pool ? std::min(blocks.size(), std::max<std::size_t>((*pool)->size() / kStagingShare, 1)) : 0;
  std::optional<StagingBatch> batch;
  if (slots > 0) batch.emplace(*pool, slots);
  const std::size_t taken = batch ? batch->size() : 0;
  // Those that have no staging memory now wait on, unless there never will be any.
  if (pool || pool.error().code != Errc::kUnsupported) PutBack(std::span(blocks).subspan(taken));
  blocks.resize(taken);
  if (taken == 0) {
    co_await Pause(kNothingToDo);
    co_return;
  }
  std::vector<BlockKey> keys;
  keys.reserve(blocks.size());
  for (const CachedBlock& block : blocks) keys.push_back(block.key);
  std::function<std::vector<bool>()> import = [&] { return batch->ImportEach(*node_.client, keys, After(kImportTimeout)); };
  const Result<std::vector<bool>> copied = co_await node_.copy_threads.Run("copy for the disk cache", import);
  if (!copied) {
    PutBack(blocks);
    co_await Pause(kNothingToDo);
    co_return;
  }
  std::vector<NewDiskBlock> written;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if ((*copied)[i])
      written.push_back({blocks[i].key, blocks[i].parent_lo, blocks[i].depth, shape, batch->bytes(i).data(), batch->checksum(i)});
  }
  std::function<Status()> append = [&] { return node_.disk->cache().Append(written); };
  // DiskHealth has what failed; blocks that were not written are offered again if they come back.
  static_cast<void>(co_await node_.disk->write_thread().Run("write to the disk cache", append));
}

Awaitable<void> DiskFeed::Pause(milliseconds time) const {
  boost::asio::steady_timer timer(node_.io, time);
  boost::system::error_code ignored;
  co_await timer.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
}

}  // namespace kvm::mesh
