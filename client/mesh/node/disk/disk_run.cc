#include "client/mesh/node/disk/disk_run.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace kvm::mesh {

std::shared_ptr<DiskRun> DiskRun::Make(NodeState& node, const BlockShape& shape, std::span<const BlockKey> keys) {
  const std::uint64_t bytes = WholePages(shape.block_bytes) * keys.size();
  if (!node.disk->TakeServingRoom(bytes)) return nullptr;
  std::shared_ptr<DiskRun> out;
  try {
    out.reset(new DiskRun(node, shape, keys));
  } catch (const std::bad_alloc&) {
    if (!out) node.disk->ReturnServingRoom(bytes);
    return nullptr;
  }
  out->room_ = bytes;
  return out;
}

DiskRun::DiskRun(NodeState& node, const BlockShape& shape, std::span<const BlockKey> keys) : node_(node), shape_(shape), ended_(node.io) {
  for (const BlockKey& key : keys) reads_.push_back({key});
}

DiskRun::~DiskRun() { node_.disk->ReturnServingRoom(room_); }

Awaitable<bool> DiskRun::Read(Time deadline) {
  deadline_ = deadline;
  ended_.expires_at(deadline);
  node_.disk->read_thread().Start([self = shared_from_this()] { self->ReadOnThread(); },
                                  [self = shared_from_this()](const std::exception_ptr& failed) { self->End(failed); });
  boost::system::error_code ignored;
  co_await ended_.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
  if (done_) co_return true;
  late_ = true;
  ++node_.disk->overdue_for_peers();
  co_return false;
}

// Zeroing the memory takes its time, too.
void DiskRun::ReadOnThread() {
  // Others' reads came first.
  if (std::chrono::steady_clock::now() >= deadline_) return;
  const std::uint64_t stride = WholePages(shape_.block_bytes);
  memory_ = AlignedBuffer(stride * reads_.size());
  for (std::size_t i = 0; i < reads_.size(); ++i) reads_[i].into = memory_.data() + stride * i;
  node_.disk->cache().Read(shape_, reads_);
}

void DiskRun::End(const std::exception_ptr& failed) {
  done_ = true;
  if (late_) --node_.disk->overdue_for_peers();
  const auto bad = std::find_if(reads_.begin(), reads_.end(), [](const DiskRead& read) { return read.end != DiskReadEnd::kGood; });
  good_ = failed ? 0 : static_cast<std::size_t>(bad - reads_.begin());
  ended_.cancel();
  if (failed) static_cast<void>(node_.work_failures.Note("read of the disk cache for a peer", failed));
}

}  // namespace kvm::mesh
